"""Scheduler: who computes how many tokens next, and in which blocks. Numbers only, no tensors.

Continuous batching as in Orca (Yu et al., OSDI 2022), chunked prefill as in Sarathi-Serve (arXiv:2403.02310),
preemption by recomputation as in PagedAttention (arXiv:2309.06180), section 4.5.
"""

import time
from collections.abc import Mapping
from collections.abc import Sequence as Seq
from itertools import islice
from types import MappingProxyType

from caravan.model.sampling.sample import LATE, Sample
from caravan.scheduler.block_pool import BlockPool
from caravan.scheduler.block_table import extend_block_table, has_room
from caravan.scheduler.config import EngineConfig
from caravan.scheduler.displacement import displaced_by_waiting
from caravan.scheduler.draft_tokens import with_drafts
from caravan.scheduler.events import EventLog
from caravan.scheduler.grammar import Matcher
from caravan.scheduler.messages import ErrorKind, FinishReason, Request, SequenceOutput, StepOutput, StepStats
from caravan.scheduler.pace import Pace
from caravan.scheduler.prefill_budget import Place, PrefillBudget, prefill_budget
from caravan.scheduler.prefix_cache import expect_full_blocks, prefix_hits, publish_full_blocks, release_blocks
from caravan.scheduler.prompt_logprobs import PromptReading
from caravan.scheduler.sequence import ScheduledSequence, Sequence
from caravan.scheduler.step_counters import StepCounters
from caravan.scheduler.waiting_queue import WaitingQueue

NOT_FINITE = "The model's output for this request was not a finite number."


class Scheduler:
    """Running sequences, oldest first; waiting ones behind them; one budget of tokens per step."""

    def __init__(self, config: EngineConfig) -> None:
        self.config = config
        self.pool = BlockPool(config.num_blocks)
        self.running: list[Sequence] = []
        self.waiting = WaitingQueue(self.running)
        self._to_tell: dict[int, Sequence] = {}  # who waits "behind others", unless it is looked at in this step
        self._refused: list[SequenceOutput] = []  # what the next commit says of requests that cannot run
        self._events = EventLog()
        self._spoiled_blocks: list[int] = []
        self._turns: dict[Place, int] = {}  # when keys last had a share of a step's prompts
        self._pace = Pace(config.max_inter_token_seconds, is_shared=config.is_shared)
        self._step = 0
        self.last_plan: list[ScheduledSequence] = []  # for those who watch
        self._counters = StepCounters()

    def add(self, request: Request, matcher: Matcher | None = None) -> None:
        """Put a request at the end of the queue, with the matcher of its grammar if it has one."""
        assert request.prompt_token_ids, "the server refuses empty prompts"
        sequence = Sequence.of(request, matcher)
        num_tokens = sequence.num_tokens + min(request.params.max_tokens, 1)
        assert num_tokens <= self.config.max_model_len, "the server refuses prompts without room for output"
        self.waiting.append(sequence)
        self._to_tell[request.request_id] = sequence

    def abort(self, request_id: int) -> None:
        """Drop a request, running or waiting; an unknown one has already ended."""
        running = next((sequence for sequence in self.running if sequence.request.request_id == request_id), None)
        if running is not None:
            self.running.remove(running)
            release_blocks(self.pool, running, self.config.block_size)
        else:
            running = self.waiting.remove(request_id)
            if running is None:
                return
        if running.matcher is not None:
            running.matcher.close()
        self._events.abort(request_id)

    @property
    def has_work(self) -> bool:
        """Whether a step would have anything to do."""
        return bool(self.running or self.waiting)

    def schedule(self) -> list[ScheduledSequence]:
        """Return what the next step computes, with every block it needs already in the block tables."""
        self._counters = StepCounters()
        num_evicted = self.pool.num_evicted
        self._to_tell |= {sequence.request.request_id: sequence for sequence in self.waiting.line_up()}
        displaced = displaced_by_waiting(self.running, self.waiting, self.pool, self.config)
        if displaced is not None:
            self._preempt(displaced)
        plan: list[ScheduledSequence] = []
        budget = self.config.max_batch_tokens
        prefill = prefill_budget(self.running, self.waiting, self.pool, self._pace, self.config, self._turns)
        index = 0
        while index < len(self.running) and budget > 0:  # oldest first; a preemption shortens the list at its end
            sequence = self.running[index]
            index += 1
            num_tokens = min(sequence.num_missing_tokens, budget)
            if num_tokens > 1:
                num_tokens = min(num_tokens, prefill.left_of(sequence))
                prefill.spend(sequence, num_tokens)
                if not num_tokens:
                    continue
            while not extend_block_table(self.pool, sequence, num_tokens, self.config.block_size):
                youngest = self.running[-1]
                self._preempt(youngest)
                if youngest is sequence:
                    break
            else:
                plan.append(ScheduledSequence(sequence, num_tokens))
                budget -= num_tokens
        if self._counters.num_preemptions == (displaced is not None):  # else who joins would be the next to go
            plan += self._admit_waiting(budget, prefill)
        if self.config.speculation == "auto":
            plan = with_drafts(plan, self.config, self.pool, len(self.running))
        for scheduled in plan:
            self._counters.count(scheduled)
        self._counters.num_evicted_blocks = self.pool.num_evicted - num_evicted
        self.last_plan = plan
        return plan

    def commit(
        self,
        plan: list[ScheduledSequence],
        samples: Seq[Sample | None],
        readings: Mapping[int, PromptReading] = MappingProxyType({}),
        failures: Mapping[int, str] = MappingProxyType({}),
    ) -> StepOutput:
        """Return what the step produced, after taking it into the sequences; isolation.StepResult says what is what.

        A sequence that failed, or whose logits were not finite, ends with an error and nothing it computed is kept.
        """
        outputs, self._refused = self._refused, []
        remaining = iter(samples)
        for index, scheduled in enumerate(plan):
            if index in failures:
                outputs.append(self._fail(scheduled.sequence, failures[index]))
                continue
            drawn = list(islice(remaining, scheduled.num_logits))
            outputs += self._take(scheduled, drawn, readings.get(index))
        self._step += bool(plan)
        return StepOutput(outputs=outputs, stats=self.stats(), events=self._events.take())

    def take_spoiled_blocks(self) -> list[int]:
        """Return the blocks that failed sequences wrote to and that nobody else has, once."""
        poisoned, self._spoiled_blocks = self._spoiled_blocks, []
        return poisoned

    def observe_seconds(self, seconds: float) -> None:
        """Take note of how long the step took that was committed last."""
        self._pace.observe(self._counters, seconds)

    def stats(self) -> StepStats:
        """Return the state of queue and pool, with the counters of the last step."""
        return StepStats(
            step=self._step,
            num_running=len(self.running),
            num_waiting=len(self.waiting),
            num_blocks=self.pool.num_blocks,
            num_used_blocks=self.pool.num_blocks - self.pool.num_free,
            num_cached_blocks=self.pool.num_cached,
            **vars(self._counters),
        )

    def _admit_waiting(self, budget: int, prefill: PrefillBudget) -> list[ScheduledSequence]:
        """Let waiting sequences join, in the order of the queue, as far as budget and pool reach.

        One whose prefix a running sequence is just computing is passed by until the blocks are published or will not
        come. It waits for running sequences only, and these never wait, so its turn comes; and one behind it cannot
        take its place in the same prefix, for it would wait for the same block. How many are looked at is bounded.
        """
        joined: list[ScheduledSequence] = []
        looked_at: dict[int, Sequence] = {}
        for sequence in islice(self.waiting, 2 * self.config.max_num_seqs):
            looked_at[sequence.request.request_id] = sequence
            room = min(budget, prefill.num_left)
            if len(self.running) >= self.config.max_num_seqs or room <= 0:
                self._events.wait(sequence, "token budget" if room <= 0 else "batch full")
                break
            room = min(room, prefill.left_of(sequence))
            if not room:  # of its key's share
                self._events.wait(sequence, "token budget")
                continue
            if sequence.awaited_hash is not None and self.pool.is_expected(sequence.awaited_hash):
                continue
            if sequence.matcher is not None and not self._has_grammar(sequence, sequence.matcher):
                continue
            hits, tail = prefix_hits(self.pool, sequence, self.config.block_size)
            if sequence.awaited_hash is not None:
                self._events.wait(sequence, "prefix being computed")
                continue
            if not has_room(self.pool, sequence, hits, self.running, self.config.block_size):
                self._events.wait(sequence, "no free blocks")
                break
            scheduled = self._admit(sequence, hits, tail, room)
            joined.append(scheduled)
            budget -= scheduled.num_tokens
            prefill.spend(sequence, scheduled.num_tokens)
        for refused in self._refused:
            self.waiting.remove(refused.request_id)
        for scheduled in joined:
            self.waiting.remove(scheduled.sequence.request.request_id)
            self.waiting.count_prompt(scheduled.sequence)
        for request_id, sequence in self._to_tell.items():
            if request_id not in looked_at and self.waiting.has(request_id):
                is_compiling = request_id in self.waiting.compiling
                self._events.wait(sequence, "grammar being compiled" if is_compiling else "behind others")
        self._to_tell = looked_at
        return joined

    def _has_grammar(self, sequence: Sequence, matcher: Matcher) -> bool:
        """Whether a waiting sequence's mask is there; if there is none, the sequence ends with an error."""
        if not matcher.is_ready:
            self._events.wait(sequence, "grammar being compiled")
            return False
        if matcher.problem:
            self._refused.append(sequence.error_output(matcher.problem, "grammar"))
            return False
        return True

    def _admit(self, sequence: Sequence, hits: list[int], tail: int | None, budget: int) -> ScheduledSequence:
        """Make a sequence run, with the blocks of its prefix, a copy of the tail, and the blocks of its first chunk."""
        for block in hits:
            self.pool.share(block)
        sequence.block_table = hits
        num_found_tokens = len(hits) * self.config.block_size
        sequence.num_computed_tokens = num_found_tokens if tail is None else sequence.num_prompt_tokens - 1
        sequence.num_published_blocks = sequence.num_expected_blocks = len(hits)
        expect_full_blocks(self.pool, sequence, self.config.block_size)
        sequence.scheduled_at_seconds = time.monotonic()
        if sequence.num_output_tokens == 0:
            sequence.num_cached_tokens = sequence.num_computed_tokens
        self._counters.prefix_cache_queries += sequence.num_tokens
        self._counters.prefix_cache_hits += sequence.num_computed_tokens
        num_tokens = min(sequence.num_missing_tokens, budget)
        fits = extend_block_table(self.pool, sequence, num_tokens, self.config.block_size)
        assert fits, "the free blocks were counted before"
        self.running.append(sequence)
        self._events.join(sequence)
        return ScheduledSequence(sequence, num_tokens, copied_block=tail)

    def _preempt(self, sequence: Sequence) -> None:
        """Take the blocks of a running sequence and put it back into the queue."""
        self.running.remove(sequence)
        self._events.preempt(sequence, sequence.num_computed_tokens)
        release_blocks(self.pool, sequence, self.config.block_size)
        self.waiting.put_back(sequence)
        self._to_tell[sequence.request.request_id] = sequence
        self._counters.num_preemptions += 1

    def _take(
        self, scheduled: ScheduledSequence, drawn: list[Sample | None], reading: PromptReading | None
    ) -> list[SequenceOutput]:
        """Take into a sequence what a step computed: its tokens, and what was drawn as far as guesses were right.

        A guessed token is computed before it is known to be the one drawn. If it is not, its keys and values lie
        behind the computed tokens, where the next step overwrites them.
        """
        sequence = scheduled.sequence
        if sequence.matcher is not None and sequence.matcher.problem:
            return [self._end_early(sequence, sequence.matcher.problem, "grammar")]
        accepted: list[Sample] = []
        reason: FinishReason | None = None
        is_finite = True
        if reading is not None:
            if not reading.is_finite:
                return [self._fail(sequence, NOT_FINITE)]
            sequence.num_read_tokens = scheduled.read_positions.stop
            sequence.pool = reading.pool
        is_late = LATE in drawn
        if is_late:  # the last token is computed again, and nothing before it
            drawn = []
        if scheduled.reaches_end and not scheduled.wants_logits:
            reason = "length"
        for sample, guess in zip(drawn, (*scheduled.draft_token_ids, None), strict=False):
            if sample is None:
                is_finite = False
                break
            accepted.append(sample)
            sequence.token_ids.append(sample.token_id)
            reason = sequence.finish_reason(self.config.max_model_len)
            if sequence.matcher is not None and reason is None:
                sequence.matcher.accept(sample.token_id)
            if reason is not None or sample.token_id != guess:
                break
        self.waiting.count_output(sequence, len(accepted))
        outputs: list[SequenceOutput] = []
        if accepted or reading is not None or reason is not None:
            outputs.append(sequence.output(accepted, reason, reading.logprobs if reading else ()))
        if not is_finite:
            return [*outputs, self._fail(sequence, NOT_FINITE)]
        num_guessed_right = max(len(accepted) - 1, 0)
        self._counters.num_accepted_tokens += num_guessed_right
        sequence.num_computed_tokens += scheduled.num_tokens + num_guessed_right - is_late
        self._events.compute(scheduled)
        expect_full_blocks(self.pool, sequence, self.config.block_size)
        publish_full_blocks(self.pool, sequence, self.config.block_size)
        if reason is not None:
            self.running.remove(sequence)
            release_blocks(self.pool, sequence, self.config.block_size)
        return outputs

    def _fail(self, sequence: Sequence, error: str) -> SequenceOutput:
        """End a sequence whose numbers went wrong; no later request shall find its blocks."""
        for block in sequence.block_table:
            self.pool.forget(block)
        blocks = [*sequence.block_table]
        output = self._end_early(sequence, error)
        self._spoiled_blocks += filter(self.pool.is_free, blocks)
        return output

    def _end_early(self, sequence: Sequence, error: str, kind: ErrorKind = "engine") -> SequenceOutput:
        """End a sequence that cannot go on."""
        if sequence.matcher is not None:
            sequence.matcher.close()
        self.running.remove(sequence)
        release_blocks(self.pool, sequence, self.config.block_size)
        return sequence.error_output(error, kind)
