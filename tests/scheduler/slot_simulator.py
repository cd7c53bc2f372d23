"""A KV cache made of plain records instead of tensors, and a model that is a hash.

Each slot remembers which text it was computed from. A step reads every position a real attention would read, so a
block shared too early, reused too soon or mapped to the wrong sequence is seen at once.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from caravan.model.sampling.sample import Sample
from caravan.scheduler.config import EngineConfig
from caravan.scheduler.decode_step import DecodeScheduler
from caravan.scheduler.messages import Request, SequenceEvent, SequenceOutput
from caravan.scheduler.overlap import UNKNOWN_TOKEN, Overlap
from caravan.scheduler.scheduler import Scheduler
from caravan.scheduler.sequence import ScheduledSequence, Sequence
from caravan.scheduler.step_result import StepResult
from tests.scheduler.requests import FakeClock
from tests.support.fake_device import FakeDevice, FakePending


def prefix_record(salt: str, token_ids: list[int]) -> int:
    """Return what the slot of the last of these tokens must hold."""
    return hash((salt, tuple(token_ids)))


def next_token(token_ids: list[int], vocab_size: int, lookback: int | None = None) -> int:
    """Return the only continuation of a text: the model of these tests. With a short lookback it repeats itself."""
    return hash(tuple(token_ids[-lookback:] if lookback else token_ids)) % vocab_size


def solo_output(
    request: Request, vocab_size: int, max_model_len: int, lookback: int | None = None
) -> tuple[list[int], str]:
    """Return the tokens and finish reason this request must get, whatever shares the batch."""
    token_ids = [*request.prompt_token_ids, *request.output_token_ids]
    while True:
        token_ids.append(next_token(token_ids, vocab_size, lookback))
        output = token_ids[len(request.prompt_token_ids) :]
        if output[-1] in request.params.stop_token_ids:
            return output, "stop"
        if len(output) >= request.params.max_tokens or len(token_ids) >= max_model_len:
            return output, "length"


class CheckedScheduler(Scheduler):
    """A scheduler whose plans are checked."""

    check: Callable[[list[ScheduledSequence], set[Sequence]], None]  # gets a plan and the sequences that have joined

    def schedule(self, *, may_displace: bool = True) -> list[ScheduledSequence]:
        waiting = set(self.waiting)
        plan = super().schedule(may_displace=may_displace)
        self.check(plan, waiting.intersection(self.running))
        return plan


class CheckedDecodeScheduler(CheckedScheduler, DecodeScheduler):
    """The scheduler of an overlapped engine."""


@dataclass
class SlotSimulator:
    """Runs a scheduler against recorded slots and collects what each request got.

    If it is overlapped, a step is computed as late as possible: when its result is asked for.
    """

    config: EngineConfig
    vocab_size: int = 7
    lookback: int | None = None
    is_overlapped: bool = False
    fails: Callable[[int], bool] = lambda number: False  # whether the computation with this number, from 0, fails
    outputs: dict[int, list[int]] = field(default_factory=dict)
    finish_reasons: dict[int, str] = field(default_factory=dict)
    events: list[SequenceEvent] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.clock = FakeClock()
        make = CheckedDecodeScheduler if self.is_overlapped else CheckedScheduler
        self.scheduler: CheckedScheduler = make(self.config, self.clock)
        self.scheduler.check = self._check
        self.device = FakeDevice()
        self.overlap = Overlap(self.scheduler, self._launch, self._run, on_failure=lambda: None, counts_tokens=False)
        self.last_tokens: dict[int, int] = {}  # of each request, on the device
        self.num_computations = 0
        self.num_steps_ahead = 0
        self.num_failures = 0
        self.violations: list[str] = []  # seen by the device
        self.slots: list[int | None] = [None] * (self.config.num_blocks * self.config.block_size)
        self.num_preemptions = 0
        self.num_prefix_hits = 0
        self.num_copies = 0
        self.num_draft_tokens = 0
        self.num_accepted_tokens = 0

    def add(self, request: Request) -> None:
        self.outputs[request.request_id] = list(request.output_token_ids)
        self.scheduler.add(request)

    def step(self) -> list[SequenceOutput]:
        """Schedule, "compute" and commit once, checking every invariant on the way."""
        if self.is_overlapped:
            output = self.overlap.step()
            self.num_steps_ahead += bool(self.overlap.ahead)
        else:
            plan = self.scheduler.schedule()
            output = self.scheduler.commit(plan, self._run(plan))
        assert not self.violations
        self.scheduler.pool.check()
        self.events += output.events
        self.num_preemptions += output.stats.num_preemptions
        self.num_prefix_hits += output.stats.prefix_cache_hits
        self.num_draft_tokens += output.stats.num_draft_tokens
        self.num_accepted_tokens += output.stats.num_accepted_tokens
        for sequence_output in output.outputs:
            self.outputs[sequence_output.request_id] += sequence_output.token_ids
            if sequence_output.finish_reason is not None:
                self.finish_reasons[sequence_output.request_id] = sequence_output.finish_reason
        return output.outputs

    def _run(self, plan: list[ScheduledSequence]) -> StepResult:
        """Compute a plan at once."""
        self.clock.seconds += self._seconds()
        return StepResult([sample for scheduled in plan for sample in self._computation(scheduled)()])

    def _launch(self, plan: list[ScheduledSequence], num_logits: list[int]) -> FakePending[list[Sample | None]]:
        """Compute a plan on the device."""
        seconds = self._seconds()
        assert num_logits == [scheduled.num_logits for scheduled in plan]
        computations = [self._computation(scheduled) for scheduled in plan]
        number = self.num_computations
        self.num_computations += 1

        def compute() -> list[Sample | None]:
            self.clock.seconds += seconds
            if self.fails(number):
                self.num_failures += 1
                self.last_tokens.clear()
                raise RuntimeError("the device failed once")
            try:
                return [sample for compute_one in computations for sample in compute_one()]
            except (AssertionError, KeyError) as error:
                if not self.fails(number - 1):  # then the tokens of the last step are missing
                    self.violations.append(str(error))  # the loop runs a failed step again
                raise

        return self.device.launch(compute)

    def _seconds(self) -> float:
        """Return how long the scheduled step takes."""
        return 0.01 + 0.002 * self.scheduler.stats().num_prefill_tokens

    def _check(self, plan: list[ScheduledSequence], joined: set[Sequence]) -> None:
        self._check_plan(plan)
        self._check_nobody_joined_too_early(joined)

    def _check_plan(self, plan: list[ScheduledSequence]) -> None:
        config, scheduler = self.config, self.scheduler
        scheduler.pool.check()
        assert sum(s.num_rows for s in plan) <= config.max_batch_tokens
        assert len(scheduler.running) <= config.max_num_seqs
        assert all(s.num_tokens >= 1 for s in plan)
        assert [s.sequence for s in plan] == [s for s in scheduler.running if s in {p.sequence for p in plan}]
        is_ahead = any(s.num_missing_tokens == 0 or s.token_ids[-1] == UNKNOWN_TOKEN for s in scheduler.running)
        if scheduler.has_work and not is_ahead:
            assert plan, "work is waiting, but the step does nothing"
        held: dict[int, int] = {}
        for sequence in scheduler.running:
            copied = [] if sequence.copied_tail is None else [sequence.copied_tail]  # held until it is copied
            for block in [*sequence.block_table, *copied]:
                held[block] = held.get(block, 0) + 1
        assert scheduler.pool.num_blocks - scheduler.pool.num_free == len(held), "a block leaked"
        written = [
            sequence.block_table[i]
            for sequence in (s.sequence for s in plan)
            for i in range(sequence.num_computed_tokens // config.block_size, len(sequence.block_table))
        ]
        assert all(held[block] == 1 for block in written), "a block about to be written is shared"

    def _check_nobody_joined_too_early(self, joined: set[Sequence]) -> None:
        """The first block that a sequence has to compute is none that one before it is computing."""
        block_size = self.config.block_size

        def text(sequence: Sequence, num_blocks: int) -> tuple[str, list[int]]:
            return sequence.request.cache_salt, sequence.token_ids[: num_blocks * block_size]

        for index, sequence in enumerate(self.scheduler.running):
            num_blocks = sequence.num_computed_tokens // block_size + 1
            if sequence in joined and num_blocks * block_size < sequence.num_tokens:
                for earlier in self.scheduler.running[:index]:
                    is_computing = earlier.num_computed_tokens < num_blocks * block_size <= earlier.num_tokens
                    assert not is_computing or text(earlier, num_blocks) != text(sequence, num_blocks)

    def _computation(self, scheduled: ScheduledSequence) -> Callable[[], list[Sample]]:
        """Return what computes a scheduled sequence, perhaps later, when the sequence has changed.

        It writes this step's slots, reads the whole context, and samples after the last token and each draft token.
        """
        sequence, block_size = scheduled.sequence, self.config.block_size
        request_id, salt = sequence.request.request_id, sequence.request.cache_salt
        table, text = [*sequence.block_table], [*sequence.token_ids, *scheduled.draft_token_ids]
        start, num_tokens, num_logits = sequence.num_computed_tokens, sequence.num_tokens, scheduled.num_logits
        end, source = start + scheduled.num_rows, scheduled.copied_block
        target = table[start // block_size]

        def compute() -> list[Sample]:
            if source is not None:
                copied = self.slots[source * block_size : (source + 1) * block_size]
                self.slots[target * block_size : (target + 1) * block_size] = copied
                self.num_copies += 1
            if text[-1] == UNKNOWN_TOKEN:
                text[-1] = self.last_tokens[request_id]
            for position in range(end):
                slot = table[position // block_size] * block_size + position % block_size
                record = prefix_record(salt, text[: position + 1])
                if position >= start:
                    self.slots[slot] = record
                assert self.slots[slot] == record, "the cache holds another text at this position"
            samples = [
                Sample(next_token(text[:length], self.vocab_size, self.lookback))
                for length in range(num_tokens, end + 1)
            ]
            if samples:
                self.last_tokens[request_id] = samples[-1].token_id
            return samples if num_logits else []

        return compute
