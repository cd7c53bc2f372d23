"""Overlap: each step is launched before the step before it is committed, so that the device never waits for Python.

A step is planned while the tokens of the one before are still unknown: their number is known, and where they go. The
device has them (scheduler/device_step.py), and the host gets them when it commits. Such a plan is wrong about
sequences that a token has ended meanwhile; their rows are thrown away. Everything else that would depend on an unknown
token is not overlapped but waits for the commit: grammars, penalties, scored prompts, draft tokens and preemptions.
Source: Zheng et al., 2024, SGLang (arXiv:2312.07104), whose scheduler runs one batch ahead of the device.
"""

import contextlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from caravan.model.sampling.sample import Sample
from caravan.model.sampling.sampler import needs_history
from caravan.scheduler.block_pool import num_blocks_for
from caravan.scheduler.faults import is_fatal
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


Launch = Callable[[list[ScheduledSequence]], Pending]  # all that it reads of sequences it reads before it returns
Run = Callable[[list[ScheduledSequence]], StepResult]  # the same, whole and at once


@dataclass
class LaunchedStep:
    """A step from its launch to its commit."""

    plan: list[ScheduledSequence]
    block_tables: list[list[int]]  # of its sequences; one that has left the batch since then has another list
    num_logits: list[int]  # of each scheduled sequence
    record: StepRecord
    pending: Pending | None  # None: it is computed when it is committed

    def is_alive(self, index: int) -> bool:
        """Return whether a sequence of the plan is still running, and was not preempted since."""
        return self.plan[index].sequence.block_table is self.block_tables[index]


class Overlap:
    """The step loop of a scheduler with one step ahead. Between two calls of `step` at most one step is launched."""

    def __init__(self, scheduler: Scheduler, launch: Launch, run: Run) -> None:
        self.scheduler = scheduler
        self._launch = launch
        self._run = run
        self._ahead: LaunchedStep | None = None

    @property
    def ahead(self) -> list[ScheduledSequence]:
        """The plan of the last step that was launched and is not committed; empty if there is none."""
        return self._ahead.plan if self._ahead is not None else []

    def step(self) -> StepOutput:
        """Launch the next step, then commit the one before it and return its output."""
        launched = self._ahead = self._ahead or self._start(self.scheduler.schedule())
        self._ahead = self._start_after(launched)
        return self.scheduler.commit(*self._finish(launched))

    def _start(self, plan: list[ScheduledSequence]) -> LaunchedStep:
        """Launch a plan, unless it must run at once or launching fails: then it runs when it is committed."""
        num_logits = [scheduled.num_logits for scheduled in plan]
        tables = [scheduled.sequence.block_table for scheduled in plan]
        pending: Pending | None = None
        if plan and not any(needs_host(scheduled) for scheduled in plan):
            try:
                pending = self._launch(plan)
            except Exception as error:
                if is_fatal(error):
                    raise
                logger.exception("A step could not be launched.")
        return LaunchedStep(plan, tables, num_logits, self.scheduler.record, pending)

    def _start_after(self, launched: LaunchedStep) -> LaunchedStep | None:
        """Plan and launch the step after a launched one; None if that step must be committed first."""
        if launched.pending is None:
            return None
        with committed_in_advance(launched, self.scheduler.config.max_model_len):
            if not can_schedule(self.scheduler):
                return None
            plan = self.scheduler.schedule()
            return self._start(plan) if plan else None

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
            else:
                return alive_part(launched, samples)
        plan = [scheduled for index, scheduled in enumerate(launched.plan) if launched.is_alive(index)]
        return plan, self._run(plan)

    def _drop_ahead(self) -> None:
        """Wait for the step ahead, which has computed with wrong tokens, and let it run again when it is committed."""
        if self._ahead is None or self._ahead.pending is None:
            return
        try:
            self._ahead.pending.result()
        except Exception as error:
            if is_fatal(error):
                raise
        self._ahead.pending = None


def needs_host(scheduled: ScheduledSequence) -> bool:
    """Return whether a step with this sequence must have all tokens on the host, before and after it."""
    sequence = scheduled.sequence
    return bool(
        sequence.matcher is not None
        or scheduled.draft_token_ids
        or scheduled.num_draft_model_rows
        or (scheduled.num_logits and needs_history(sequence.request.params))
        or (sequence.scored_end and scheduled.scored_positions)
    )


def can_schedule(scheduler: Scheduler) -> bool:
    """Return whether the next step can be planned before the last one is committed.

    Not if it could preempt a sequence, as the commit may free the blocks or the place; nor if it could have draft
    tokens, which continue a known text: those are only for steps with few rows.
    """
    config, running = scheduler.config, scheduler.running
    if scheduler.draft_tokens is not None:
        num_rows = sum(sequence.num_missing_tokens > 0 for sequence in running)
        if num_rows < min(MAX_ROWS, config.max_batch_tokens):
            return False
    return scheduler.find_displaced() is None and has_blocks(scheduler, running)


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
    for index, scheduled in enumerate(launched.plan):
        if not launched.is_alive(index):
            continue
        sequence = scheduled.sequence
        num_more = len(sequence.token_ids) + 1
        end = min(sequence.num_prompt_tokens + sequence.request.params.max_tokens, max_model_len)
        is_continued = launched.num_logits[index] > 0 and num_more < end
        sequence.num_computed_tokens += scheduled.num_tokens
        if is_continued:
            sequence.token_ids.append(UNKNOWN_TOKEN)
        changed.append((sequence, scheduled.num_tokens, is_continued))
    try:
        yield
    finally:
        for sequence, num_tokens, is_continued in changed:
            sequence.num_computed_tokens -= num_tokens
            if is_continued:
                sequence.token_ids.pop()


def alive_part(launched: LaunchedStep, samples: list[Sample | None]) -> tuple[list[ScheduledSequence], StepResult]:
    """Return the sequences of a launched step that are still running, with their samples."""
    if all(map(launched.is_alive, range(len(launched.plan)))):
        return launched.plan, StepResult(samples)
    plan: list[ScheduledSequence] = []
    kept: list[Sample | None] = []
    start = 0
    for index, scheduled in enumerate(launched.plan):
        end = start + launched.num_logits[index]
        if launched.is_alive(index):
            plan.append(scheduled)
            kept += samples[start:end]
        start = end
    return plan, StepResult(kept)
