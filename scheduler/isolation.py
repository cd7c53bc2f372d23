"""A step that goes wrong is run again one sequence at a time, so that only the one that makes it go wrong fails."""

import logging
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

from caravan.model.sampling.sample import Sample
from caravan.scheduler.prompt_logprobs import PromptReading
from caravan.scheduler.sequence import ScheduledSequence
from caravan.scheduler.tracebacks import described

logger = logging.getLogger(__name__)

Run = Callable[[list[ScheduledSequence]], tuple[list[Sample | None], dict[int, PromptReading]]]


class StepResult(NamedTuple):
    """What a step computed, by place in its plan."""

    samples: list[Sample | None]  # num_logits for each scheduled sequence; None: its logits were not finite
    readings: Mapping[int, PromptReading] = MappingProxyType({})
    failures: Mapping[int, str] = MappingProxyType({})  # what went wrong with a sequence, which has no samples


def run_isolated(run: Run, plan: list[ScheduledSequence]) -> StepResult:
    """Return what `run` makes of the plan.

    A row's numbers do not depend on its batch, so running rows again by themselves changes none of them; what was
    written to the KV cache is written once more. Running out of memory is not the fault of a sequence and is raised.
    """
    try:
        return StepResult(*run(plan))
    except MemoryError:
        raise
    except Exception:
        logger.exception("A step failed; its %d sequences are run one by one.", len(plan))
    samples: list[Sample | None] = []
    readings: dict[int, PromptReading] = {}
    failures: dict[int, str] = {}
    for index, scheduled in enumerate(plan):
        try:
            drawn, read = run([scheduled])
        except MemoryError:
            raise
        except Exception as error:
            failures[index] = described(error)
            continue
        samples += drawn
        if read:
            readings[index] = read[0]
    return StepResult(samples, readings, failures)
