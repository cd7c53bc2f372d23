"""A KV cache made of plain records instead of tensors, and a model that is a hash.

Each slot remembers which text it was computed from. A step reads every position a real attention would read, so a
block shared too early, reused too soon or mapped to the wrong sequence is seen at once.
"""

from dataclasses import dataclass, field

from caravan.model.sampling.sample import Sample
from caravan.scheduler.config import EngineConfig
from caravan.scheduler.messages import Request, SequenceOutput
from caravan.scheduler.scheduler import Scheduler
from caravan.scheduler.sequence import ScheduledSequence, Sequence
from caravan.scheduler.step_result import StepResult
from tests.scheduler.requests import FakeClock


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


@dataclass
class SlotSimulator:
    """Runs a scheduler against recorded slots and collects what each request got."""

    config: EngineConfig
    vocab_size: int = 7
    lookback: int | None = None
    outputs: dict[int, list[int]] = field(default_factory=dict)
    finish_reasons: dict[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.clock = FakeClock()
        self.scheduler = Scheduler(self.config, self.clock)
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
        waiting = set(self.scheduler.waiting)
        plan = self.scheduler.schedule()
        self._check_plan(plan)
        self._check_nobody_joined_too_early(waiting.intersection(self.scheduler.running))
        self.clock.seconds += 0.01 + 0.002 * self.scheduler.stats().num_prefill_tokens
        samples = [sample for scheduled in plan for sample in self._compute(scheduled)]
        output = self.scheduler.commit(plan, StepResult(samples))
        self.scheduler.pool.check()
        self.num_preemptions += output.stats.num_preemptions
        self.num_prefix_hits += output.stats.prefix_cache_hits
        self.num_draft_tokens += output.stats.num_draft_tokens
        self.num_accepted_tokens += output.stats.num_accepted_tokens
        for sequence_output in output.outputs:
            self.outputs[sequence_output.request_id] += sequence_output.token_ids
            if sequence_output.finish_reason is not None:
                self.finish_reasons[sequence_output.request_id] = sequence_output.finish_reason
        return output.outputs

    def _check_plan(self, plan: list[ScheduledSequence]) -> None:
        config, scheduler = self.config, self.scheduler
        scheduler.pool.check()
        assert sum(s.num_rows for s in plan) <= config.max_batch_tokens
        assert len(scheduler.running) <= config.max_num_seqs
        assert all(s.num_tokens >= 1 for s in plan)
        assert [s.sequence for s in plan] == [s for s in scheduler.running if s in {p.sequence for p in plan}]
        if scheduler.has_work:
            assert plan, "work is waiting, but the step does nothing"
        held: dict[int, int] = {}
        for sequence in scheduler.running:
            for block in sequence.block_table:
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

    def _compute(self, scheduled: ScheduledSequence) -> list[Sample]:
        """Write this step's slots, read the whole context, and sample after the last token and each draft token."""
        sequence, block_size = scheduled.sequence, self.config.block_size
        if scheduled.copied_block is not None:
            source, target = scheduled.copied_block * block_size, scheduled.first_block(block_size) * block_size
            self.slots[target : target + block_size] = self.slots[source : source + block_size]
            self.num_copies += 1
        text = [*sequence.token_ids, *scheduled.draft_token_ids]
        end = sequence.num_computed_tokens + scheduled.num_rows
        salt = sequence.request.cache_salt
        for position in range(end):
            slot = sequence.block_table[position // block_size] * block_size + position % block_size
            record = prefix_record(salt, text[: position + 1])
            if position >= sequence.num_computed_tokens:
                self.slots[slot] = record
            assert self.slots[slot] == record, "the cache holds another text at this position"
        if not scheduled.num_logits:
            return []
        return [
            Sample(next_token(text[:length], self.vocab_size, self.lookback))
            for length in range(sequence.num_tokens, end + 1)
        ]
