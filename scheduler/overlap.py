"""Overlap: each step is launched before the step before it is committed, so that the device never waits for Python.

A step is planned while the tokens of the one before are still unknown: their number is known, and where they go. The
device has them (scheduler/device_step.py), and the host gets them when it commits. Such a plan is wrong about
sequences that a token has ended meanwhile; their rows are thrown away. Everything else that would depend on an unknown
token is not overlapped but waits for the commit: grammars, bad words of several tokens, scored prompts, draft tokens,
preemptions, and penalties unless the sampler counts tokens on the device.
Source: Zheng et al., 2024, SGLang (arXiv:2312.07104), whose scheduler runs one batch ahead of the device.
"""

import contextlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import compress
from typing import Protocol

from caravan.model.sampling.sample import Sample
from caravan.model.sampling.sampler import has_penalties, has_phrases
from caravan.scheduler.block_pool import num_blocks_for
from caravan.scheduler.faults import is_fatal, is_out_of_memory
from caravan.scheduler.messages import StepOutput
from caravan.scheduler.scheduler import Scheduler
from caravan.scheduler.sequence import ScheduledSequence, Sequence
from caravan.scheduler.speculation import MAX_ROWS
from caravan.scheduler.step_counters import StepRecord
from caravan.scheduler.step_result import StepResult

logger = logging.getLogger(__name__)

UNKNOWN_TOKEN = -1  # in the text of a sequence while a step is planned whose input it is; the device has the token


class Pending(Protocol):
    """The samples of a step that was launched."""

    def result(self) -> list[Sample | None]:
        """Wait for the step and return its samples in the order of its plan; raises what the step raised."""
        ...


# Gets a plan and the number of samples of each sequence, 0 or 1. It reads of sequences what it needs before it returns.
Launch = Callable[[list[ScheduledSequence], list[int]], Pending]
Run = Callable[[list[ScheduledSequence]], StepResult]  # the same, whole and at once


@dataclass
class LaunchedStep:
    """A step from its launch to its commit."""

    plan: list[ScheduledSequence]
    block_tables: list[list[int]]  # of its sequences; one that has left the batch since then has another list
    num_logits: list[int]  # of each scheduled sequence
    record: StepRecord
    pending: Pending | None  # None: it is computed when it is committed
    is_decode: bool  # every sequence computes its last token and gets the next one; nothing is copied

    def are_alive(self) -> list[bool]:
        """Return whether each sequence of the plan is still running, and was not preempted since."""
        pairs = zip(self.plan, self.block_tables, strict=True)
        return [scheduled.sequence.block_table is table for scheduled, table in pairs]


class Overlap:
    """The step loop of a scheduler with one step ahead. Between two calls of `step` at most one step is launched."""

    def __init__(
        self, scheduler: Scheduler, launch: Launch, run: Run, on_failure: Callable[[], None], *, counts_tokens: bool
    ) -> None:
        """`on_failure` is called after a launched step has failed, when nothing is launched.

        counts_tokens: launched rows may have penalties.
        """
        self.scheduler = scheduler
        self._launch = launch
        self._run = run
        self._on_failure = on_failure
        self._counts_tokens = counts_tokens
        self._ahead: LaunchedStep | None = None
        self._has_failed = False

    @property
    def ahead(self) -> list[ScheduledSequence]:
        """The plan of the last step that was launched and is not committed; empty if there is none."""
        return self._ahead.plan if self._ahead is not None else []

    def step(self) -> StepOutput:
        """Launch the next step, then commit the one before it and return its output."""
        launched = self._ahead = self._ahead or self._start(self.scheduler.schedule())
        self._ahead = self._start_after(launched)
        return self.scheduler.commit(*self._finish(launched))

    def abandon(self) -> None:
        """Wait for what is launched and forget it, though memory may be short. Its sequences are to be preempted."""
        try:
            self._drop_ahead()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        self._ahead = None

    def _start(self, plan: list[ScheduledSequence], *, is_decode: bool = False) -> LaunchedStep:
        """Launch a plan, unless it must run at once or launching fails: then it runs when it is committed.

        `is_decode` if all its sequences were in the last launched step, and decode.
        """
        num_logits = [1] * len(plan) if is_decode else [scheduled.num_logits for scheduled in plan]
        tables = [scheduled.sequence.block_table for scheduled in plan]
        pending: Pending | None = None
        if plan and (
            is_decode or not any(needs_host(scheduled, counts_tokens=self._counts_tokens) for scheduled in plan)
        ):
            try:
                pending = self._launch(plan, num_logits)
            except Exception as error:
                if is_fatal(error):
                    raise
                logger.exception("A step could not be launched; it is run after the one before it.")
                self._has_failed = True
        is_decode = is_decode or (
            all(num_logits) and all(one.num_tokens == 1 and one.copied_block is None for one in plan)
        )
        self.scheduler.record.is_launched = pending is not None
        return LaunchedStep(plan, tables, num_logits, self.scheduler.record, pending, is_decode)

    def _start_after(self, launched: LaunchedStep) -> LaunchedStep | None:
        """Plan and launch the step after a launched one; None if that step must be committed first."""
        if launched.pending is None:
            return None
        with committed_in_advance(launched, self.scheduler.config.max_model_len):
            if not can_schedule(self.scheduler):
                return None
            is_decode = is_repeated(self.scheduler, launched)
            if is_decode:
                plan = schedule_again(self.scheduler, launched.plan)
            else:  # can_schedule has found that no sequence is displaced
                plan = self.scheduler.schedule(may_displace=False)
            following = self._start(plan, is_decode=is_decode)
        return following if plan else None

    def _finish(self, launched: LaunchedStep) -> tuple[list[ScheduledSequence], StepResult]:
        """Return the part of a launched step's plan that is still wanted, and its result."""
        self.scheduler.record = launched.record
        if launched.pending is not None:
            try:
                samples = launched.pending.result()
            except Exception as error:
                if is_fatal(error):
                    raise
                logger.exception("A launched step failed; it and the step after it are run again.")
                self._drop_ahead()
                self._has_failed = True
            else:
                return alive_part(launched, samples)
        if self._has_failed:
            self._has_failed = False
            self._on_failure()
        plan = [*compress(launched.plan, launched.are_alive())]
        return plan, self._run(plan)

    def _drop_ahead(self) -> None:
        """Wait for the step ahead, whose result is not wanted, and let it run again when it is committed."""
        if self._ahead is None or self._ahead.pending is None:
            return
        try:
            self._ahead.pending.result()
        except Exception as error:
            if is_fatal(error):
                raise
        self._ahead.pending = None


def needs_host(scheduled: ScheduledSequence, *, counts_tokens: bool) -> bool:
    """Return whether a step with this sequence must have all tokens on the host, before and after it."""
    sequence, _, drafts, _, _, num_draft_model_rows = scheduled
    if sequence.matcher is not None or drafts or num_draft_model_rows:
        return True
    params = sequence.request.params
    if has_phrases(params) or (has_penalties(params) and not counts_tokens):
        return True
    if sequence.allowed is not None or is_thought_ending(sequence):
        return True
    is_prompt = sequence.num_computed_tokens < len(sequence.request.prompt_token_ids)
    return is_prompt and bool(scheduled.scored_positions)


def is_thought_ending(sequence: Sequence) -> bool:
    """Return whether the budget of the sequence's thought may decide its next token, of whose text one is unknown."""
    thought = sequence.thought
    if thought is None or thought.is_over:
        return False
    thought.read(sequence.token_ids, sequence.num_prompt_tokens)
    return thought.may_force(num_unknown=1)


def can_schedule(scheduler: Scheduler) -> bool:
    """Return whether the next step can be planned before the last one is committed.

    Not if it could preempt a sequence, as the commit may free the blocks or the place; nor if it could have draft
    tokens, which continue a known text: those are only for steps with few rows; nor before poisoned blocks are cleared,
    which a plan could give to a sequence.
    """
    config, running = scheduler.config, scheduler.running
    if scheduler.draft_tokens is not None:
        num_rows = sum(sequence.num_missing_tokens == 1 for sequence in running)  # prompts may have to wait
        if num_rows < min(MAX_ROWS, config.max_batch_tokens):
            return False
    if scheduler.blocks.poisoned:
        return False
    return scheduler.find_displaced() is None and has_blocks(scheduler, running)


def is_repeated(scheduler: Scheduler, launched: LaunchedStep) -> bool:
    """Return whether the next plan is that of a launched step again: all decode, none ends, none joins."""
    running = scheduler.running
    if not launched.is_decode or len(launched.plan) != len(running) or not all(launched.are_alive()):
        return False
    if scheduler.waiting and (len(running) < scheduler.config.max_num_seqs or len(scheduler.unreported) > 1):
        return False
    return all(sequence.token_ids[-1] == UNKNOWN_TOKEN and not is_thought_ending(sequence) for sequence in running)


def schedule_again(scheduler: Scheduler, plan: list[ScheduledSequence]) -> list[ScheduledSequence]:
    """Return a plan of decoding sequences for the step after it, with blocks for it, of which there are enough.

    It is what `Scheduler.schedule` returns, found in a fifth of the time.
    """
    scheduler.record = StepRecord(scheduler.clock())
    num_evicted = scheduler.pool.num_evicted
    size = scheduler.config.block_size
    for sequence, *_ in plan:
        if sequence.num_computed_tokens == len(sequence.block_table) * size:
            is_extended = scheduler.blocks.extend(sequence, 1)
            assert is_extended, "has_blocks counted them"
    scheduler.record.counters.num_decode_tokens = len(plan)
    scheduler.record.counters.num_evicted_blocks = scheduler.pool.num_evicted - num_evicted
    scheduler.last_plan = plan
    return plan


def has_blocks(scheduler: Scheduler, running: list[Sequence]) -> bool:
    """Return whether the next step of all running sequences needs no more blocks than are free."""
    size, budget = scheduler.config.block_size, scheduler.config.max_batch_tokens
    num_free = scheduler.pool.num_free
    if len(running) + budget // size <= num_free:  # each sequence needs less than one more than its tokens fill
        return True
    for sequence in running:
        num_tokens = sequence.num_computed_tokens + min(sequence.num_missing_tokens, budget)
        num_free -= max(num_blocks_for(num_tokens, size) - len(sequence.block_table), 0)
    return num_free >= 0


@contextlib.contextmanager
def committed_in_advance(launched: LaunchedStep, max_model_len: int) -> Iterator[None]:
    """Let the sequences of a launched step be as after its commit, each sampled token being UNKNOWN_TOKEN.

    A sequence that ends with the step, because it has its number of tokens, gets none and has nothing to compute.
    Meanwhile no sequence may leave the batch.
    """
    changed: list[tuple[Sequence, int, bool]] = []
    for (sequence, num_tokens, *_), table, num_logits in zip(
        launched.plan, launched.block_tables, launched.num_logits, strict=True
    ):
        if sequence.block_table is not table:
            continue
        token_ids, request = sequence.token_ids, sequence.request
        num_more = len(token_ids) + 1
        max_tokens = len(request.prompt_token_ids) + request.params.max_tokens
        is_continued = num_logits > 0 and num_more < max_tokens and num_more < max_model_len
        sequence.num_computed_tokens += num_tokens
        if is_continued:
            token_ids.append(UNKNOWN_TOKEN)
        changed.append((sequence, num_tokens, is_continued))
    try:
        yield
    finally:
        for sequence, num_tokens, is_continued in changed:
            sequence.num_computed_tokens -= num_tokens
            if is_continued:
                sequence.token_ids.pop()


def alive_part(launched: LaunchedStep, samples: list[Sample | None]) -> tuple[list[ScheduledSequence], StepResult]:
    """Return the sequences of a launched step that are still running, with their samples."""
    are_alive = launched.are_alive()
    if all(are_alive):
        return launched.plan, StepResult(samples)
    owners = [index for index, count in enumerate(launched.num_logits) for _ in range(count)]  # of the samples
    kept = [sample for owner, sample in zip(owners, samples, strict=True) if are_alive[owner]]
    return [*compress(launched.plan, are_alive)], StepResult(kept)
