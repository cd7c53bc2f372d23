"""Isolation: a step that fails is run again one sequence at a time, so that only the faulty sequence fails."""

import logging
from collections.abc import Callable

from caravan.model.sampling.sample import Sample
from caravan.scheduler.faults import is_fatal
from caravan.scheduler.prompt_result import PromptResult
from caravan.scheduler.sequence import ScheduledSequence
from caravan.scheduler.step_result import StepResult
from caravan.scheduler.tracebacks import described

logger = logging.getLogger(__name__)

Compute = Callable[[list[ScheduledSequence]], tuple[list[Sample | None], dict[int, PromptResult]]]


def run_isolated(compute: Compute, plan: list[ScheduledSequence]) -> StepResult:
    """Return the result of a plan.

    A row's numbers do not depend on its batch, so computing it again alone gives the same ones; keys and values are
    written to the KV cache again. An error that is no sequence's fault, such as a MemoryError, is raised.
    """
    try:
        return StepResult(*compute(plan))
    except Exception as error:
        if is_fatal(error):
            raise
        logger.exception("A step failed; its %d sequences are run one by one.", len(plan))
    samples: list[Sample | None] = []
    prompts: dict[int, PromptResult] = {}
    failures: dict[int, str] = {}
    for index, scheduled in enumerate(plan):
        try:
            own_samples, own_prompt = compute([scheduled])
        except Exception as error:
            if is_fatal(error):
                raise
            failures[index] = described(error)
            continue
        samples += own_samples
        if own_prompt:
            prompts[index] = own_prompt[0]
    return StepResult(samples, prompts, failures)
