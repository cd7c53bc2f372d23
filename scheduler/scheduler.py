"""Scheduler: which sequences compute how many tokens in the next step, and in which blocks. No tensors.

Continuous batching as in Orca (Yu et al., OSDI 2022), chunked prefill as in Sarathi-Serve (arXiv:2403.02310),
preemption by recomputation as in PagedAttention (arXiv:2309.06180), section 4.5.
"""

import time
from collections.abc import Callable
from itertools import islice

from caravan.model.sampling.sample import LATE, Sample
from caravan.scheduler.block_manager import BlockManager, CachedPrefix
from caravan.scheduler.block_pool import BlockPool
from caravan.scheduler.config import EngineConfig
from caravan.scheduler.displacement import displaced_by_waiting
from caravan.scheduler.draft_tokens import DraftTokens
from caravan.scheduler.events import EventLog
from caravan.scheduler.grammar import Matcher
from caravan.scheduler.messages import FinishReason, Request, SequenceOutput, StepOutput, StepStats
from caravan.scheduler.model_drafts import ModelDrafts
from caravan.scheduler.prefill_budget import Place, PrefillBudget, prefill_budget
from caravan.scheduler.prefill_limiter import PrefillLimiter
from caravan.scheduler.preparation import Adapters, preparation
from caravan.scheduler.prompt_result import PromptResult
from caravan.scheduler.sequence import ScheduledSequence, Sequence
from caravan.scheduler.step_counters import StepRecord
from caravan.scheduler.step_result import StepResult
from caravan.scheduler.waiting_queue import WaitingQueue, has_place

NOT_FINITE = "The model's output for this request was not a finite number."


class Scheduler:
    """Running sequences, oldest first, and a queue of waiting ones. Each step has one budget of tokens for both."""

    def __init__(self, config: EngineConfig, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` returns seconds; steps are timed with it."""
        self.config = config
        self.clock = clock
        self.pool = BlockPool(config.num_blocks, clock)
        self.blocks = BlockManager(self.pool, config.block_size)
        self.running: list[Sequence] = []
        self.waiting = WaitingQueue(self.running)
        self.draft_tokens = DraftTokens(config, self.blocks) if config.speculation == "on" else None
        self.adapters: Adapters | None = None  # set by who has some
        self.unreported: dict[int, Sequence] = {}  # wait "behind others", unless the next step looks at them
        self._rejected: list[SequenceOutput] = []  # errors of waiting requests, for the next commit
        self._events = EventLog()
        self._turns: dict[Place, int] = {}  # when each place last had a share of a step's prompt tokens
        self._limiter = PrefillLimiter(config.max_inter_token_seconds, is_shared=config.is_shared)
        self._step = 0
        self._committed_at_seconds = 0.0
        self.last_plan: list[ScheduledSequence] = []
        self.record = StepRecord()  # of the step that was scheduled last, or that is being committed

    def add(self, request: Request, matcher: Matcher | None = None) -> None:
        """Append a request to the queue, with the matcher of its grammar if it has one."""
        assert request.prompt_token_ids, "the server rejects empty prompts"
        sequence = Sequence.of(request, matcher)
        num_tokens = sequence.num_tokens + min(request.params.max_tokens, 1)
        assert num_tokens <= self.config.max_model_len, "the server rejects prompts that leave no token for output"
        self.waiting.append(sequence)
        self.unreported[request.request_id] = sequence

    def abort(self, request_id: int) -> None:
        """Drop a request, running or waiting. A request that has already ended is ignored."""
        sequence = next((one for one in self.running if one.request.request_id == request_id), None)
        if sequence is not None:
            self._end(sequence)
        elif (sequence := self.waiting.remove(request_id)) is None:
            return
        if sequence.matcher is not None:
            sequence.matcher.close()
        self._events.abort(request_id)

    @property
    def model_drafts(self) -> ModelDrafts | None:
        """What a draft model drafts; None without one."""
        return self.draft_tokens.model if self.draft_tokens is not None else None

    @property
    def has_work(self) -> bool:
        """Whether there are running or waiting sequences."""
        return bool(self.running or self.waiting)

    def schedule(self, *, may_displace: bool = True) -> list[ScheduledSequence]:
        """Return what the next step computes. All blocks that it needs are in the block tables."""
        self.record = StepRecord(self.clock())
        self.record.counters.spill = self.blocks.finish_reads(self._events)
        num_evicted = self.pool.num_evicted
        if (displaced := self.find_displaced() if may_displace else None) is not None:
            self.preempt(displaced)
        plan: list[ScheduledSequence] = []
        prefill = prefill_budget(self.running, self.waiting, self.blocks, self._limiter, self.config, self._turns)
        self.record.planned_seconds = self._limiter.planned_seconds
        index, budget = 0, self.config.max_batch_tokens
        while index < len(self.running) and budget > 0:  # oldest first; a preemption shortens the list at its end
            sequence = self.running[index]
            index += 1
            num_tokens = min(sequence.num_missing_tokens, budget)
            if num_tokens != 1:  # 0: it ends with a step that is not committed yet
                num_tokens = min(num_tokens, prefill.left_of(sequence))
                prefill.spend(sequence, num_tokens)
                if not num_tokens:
                    continue
            while not self.blocks.extend(sequence, num_tokens):
                youngest = self.running[-1]
                self.preempt(youngest)
                if youngest is sequence:
                    break
            else:
                plan.append(ScheduledSequence(sequence, num_tokens))
                budget -= num_tokens
        counters = self.record.counters
        if counters.num_preemptions == (displaced is not None):  # else a joining sequence would be preempted next
            plan += self._join_waiting(budget, prefill)
        if self.draft_tokens is not None:
            plan = self.draft_tokens.add_to(plan, len(self.running))
        counters.count(plan)
        counters.num_evicted_blocks = self.pool.num_evicted - num_evicted
        self.last_plan = plan
        return plan

    def find_displaced(self) -> Sequence | None:
        """Return the sequence that makes way for another key in the next step, or None."""
        self.unreported |= {sequence.request.request_id: sequence for sequence in self.waiting.line_up()}
        return displaced_by_waiting(self.running, self.waiting, self.blocks, self.config)

    def commit(self, plan: list[ScheduledSequence], result: StepResult) -> StepOutput:
        """Apply the result of a plan to its sequences and return the output of the step.

        A sequence that failed, or whose logits were not finite, ends with an error, and its blocks are not cached.
        """
        outputs, self._rejected = self._rejected + self.apply(plan, result), []
        self._step += bool(plan)
        seconds = (now := self.clock()) - max(self.record.started_seconds, self._committed_at_seconds)
        self._committed_at_seconds = now  # the next step may have been started before
        drafts = self.model_drafts
        draft_seconds = drafts.policy.draft_seconds if drafts is not None else 0.0
        self._limiter.observe(self.record, seconds - draft_seconds)  # steps with prompts have no drafts
        if drafts is not None:
            drafts.policy.observe_step(0 if self.record.is_launched else sum(one.num_rows for one in plan), seconds)
            self.record.counters.draft_model_seconds = draft_seconds
        return StepOutput(outputs=outputs, stats=self.stats(seconds), events=self._events.take())

    def apply(self, plan: list[ScheduledSequence], result: StepResult) -> list[SequenceOutput]:
        """Apply the result of a plan to its sequences and return their outputs."""
        outputs: list[SequenceOutput] = []
        samples = iter(result.samples)
        for index, scheduled in enumerate(plan):
            if index in result.failures:
                outputs.append(self._fail(scheduled.sequence, result.failures[index]))
                continue
            outputs += self._apply(scheduled, list(islice(samples, scheduled.num_logits)), result.prompts.get(index))
        return outputs

    def stats(self, step_seconds: float = 0.0) -> StepStats:
        """Return the state of queue and pool, with the counters of the last step."""
        return StepStats(
            step=self._step,
            num_running=len(self.running),
            num_waiting=len(self.waiting),
            num_blocks=self.pool.num_blocks,
            num_used_blocks=self.pool.num_blocks - self.pool.num_free,
            num_cached_blocks=self.pool.num_cached,
            step_seconds=step_seconds,
            **vars(self.record.counters),
        )

    def _join_waiting(self, budget: int, prefill: PrefillBudget) -> list[ScheduledSequence]:
        """Let waiting sequences join, in the order of the queue, as long as the budget and the pool allow.

        A sequence whose prefix is being computed or read waits until the blocks are cached or no longer pending, and
        later ones pass it: with the same prefix they wait for the same block. A step looks at a bounded number.
        """
        joined: list[ScheduledSequence] = []
        looked_at: dict[int, Sequence] = {}
        for sequence in islice(self.waiting, 2 * self.config.max_num_seqs):
            looked_at[sequence.request.request_id] = sequence
            num_left = min(budget, prefill.num_left)
            if num_left <= 0 or not has_place(sequence, self.running, self.config):
                self._events.wait(sequence, "token budget" if num_left <= 0 else "batch full")
                break
            num_left = min(num_left, prefill.left_of(sequence))
            if not num_left:  # its key has used its share
                self._events.wait(sequence, "token budget")
                continue
            if self.blocks.is_prefix_pending(sequence):
                continue
            wait, rejection = preparation(sequence, self.adapters, self.running)
            if rejection is not None:
                self._rejected.append(rejection)
                continue
            if wait is not None:
                self._events.wait(sequence, wait)
                continue
            prefix = self.blocks.find_prefix(sequence)
            if sequence.awaited_hash is not None:
                self._events.wait(sequence, "prefix being computed")
                continue
            if not self.blocks.can_allocate(sequence, self.running, prefix):
                self._events.wait(sequence, "no free blocks")
                break
            if self.blocks.read_prefix(sequence, prefix):
                self._events.wait(sequence, "prefix being read")
                continue
            scheduled = self._join(sequence, prefix, num_left)
            joined.append(scheduled)
            budget -= scheduled.num_tokens
            prefill.spend(sequence, scheduled.num_tokens)
        for rejected in self._rejected:
            self.waiting.remove(rejected.request_id)
        for scheduled in joined:
            self.waiting.remove(scheduled.sequence.request.request_id)
            self.waiting.count_prompt(scheduled.sequence)
        for request_id, sequence in self.unreported.items():
            if request_id not in looked_at and self.waiting.has(request_id):
                is_compiling = request_id in self.waiting.compiling
                self._events.wait(sequence, "grammar being compiled" if is_compiling else "behind others")
        self.unreported = looked_at
        return joined

    def _join(self, sequence: Sequence, prefix: CachedPrefix, budget: int) -> ScheduledSequence:
        """Move a sequence to the running ones, with its cached prefix and the blocks of its first chunk."""
        miss = self.blocks.attach(sequence, prefix)
        sequence.scheduled_at_seconds = self.clock()
        if sequence.num_output_tokens == 0:
            sequence.num_cached_tokens = sequence.num_computed_tokens
        self.record.counters.prefix_cache_queries += sequence.num_tokens
        self.record.counters.prefix_cache_hits += sequence.num_computed_tokens
        num_tokens = min(sequence.num_missing_tokens, budget)
        is_extended = self.blocks.extend(sequence, num_tokens)
        assert is_extended, "can_allocate counted the free blocks"
        self.running.append(sequence)
        self._events.join(sequence, miss)
        return ScheduledSequence(sequence, num_tokens, copied_block=prefix.tail)

    def _end(self, sequence: Sequence) -> None:
        """Stop a running sequence that will not go on; its answer may be repeated by later ones."""
        if self.draft_tokens is not None:
            self.draft_tokens.remember(sequence)
        self._stop(sequence)

    def _stop(self, sequence: Sequence) -> None:
        """Remove a running sequence from the batch and release its blocks."""
        self.running.remove(sequence)
        self.blocks.release(sequence)

    def preempt(self, sequence: Sequence) -> None:
        """Put a running sequence back into the queue, without its blocks."""
        self._events.preempt(sequence, sequence.num_computed_tokens)
        self._stop(sequence)
        self.waiting.put_back(sequence)
        self.unreported[sequence.request.request_id] = sequence
        self.record.counters.num_preemptions += 1

    def _apply(
        self, scheduled: ScheduledSequence, samples: list[Sample | None], prompt: PromptResult | None
    ) -> list[SequenceOutput]:
        """Apply the result of a step to a sequence: its samples up to the first wrong draft token.

        Draft tokens are computed before they are verified. The keys and values of rejected ones lie after the computed
        tokens, where the next step overwrites them.
        """
        sequence = scheduled.sequence
        if sequence.matcher is not None and sequence.matcher.problem:
            self._stop(sequence)
            return [sequence.end_with_error(sequence.matcher.problem, "grammar")]
        accepted: list[Sample] = []
        reason: FinishReason | None = None
        is_finite = True
        if prompt is not None:
            if not prompt.is_finite:
                return [self._fail(sequence, NOT_FINITE)]
            sequence.take_scored(scheduled.scored_positions.stop, prompt.logprobs, prompt.pool)
        is_late = LATE in samples
        if is_late:  # the last token is computed again, and nothing before it
            samples = []
        if scheduled.reaches_end and not scheduled.wants_logits:
            reason = "length"
        for sample, draft in zip(samples, (*scheduled.draft_token_ids, None), strict=False):
            if sample is None:
                is_finite = False
                break
            accepted.append(sample)
            sequence.token_ids.append(sample.token_id)
            reason = sequence.finish_reason(self.config.max_model_len)
            if sequence.matcher is not None and reason is None:
                sequence.matcher.accept(sample.token_id)
            if reason is not None or sample.token_id != draft:
                break
        self.waiting.count_output(sequence, len(accepted))
        outputs: list[SequenceOutput] = []
        if accepted or prompt is not None or reason is not None:
            scored = (prompt.logprobs, prompt.token_logprobs) if prompt is not None else ()
            outputs.append(sequence.output(accepted, reason, *scored))
        if not is_finite:
            return [*outputs, self._fail(sequence, sequence.problem or NOT_FINITE)]
        num_accepted_drafts = max(len(accepted) - 1, 0)
        self.record.counters.count_accepted(scheduled.draft_source, num_accepted_drafts)
        sequence.num_computed_tokens += scheduled.num_tokens + num_accepted_drafts - is_late
        self._events.compute(scheduled)
        self.blocks.mark_pending(sequence)
        self.blocks.cache_computed(sequence)
        if self.model_drafts is not None:
            self.model_drafts.learn(scheduled, [sample.token_id for sample in accepted])
        if reason is not None:
            self._end(sequence)
        return outputs

    def _fail(self, sequence: Sequence, error: str) -> SequenceOutput:
        """End a running sequence whose numbers are wrong, and take its blocks out of the cache."""
        self.running.remove(sequence)
        self.blocks.poison(sequence)
        return sequence.end_with_error(error, "grammar" if error == sequence.problem else "engine")
