"""StepResult: what a step computed for the sequences of its plan."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from caravan.model.sampling.sample import Sample
from caravan.scheduler.prompt_result import PromptResult


class StepResult(NamedTuple):
    """Samples in the order of the plan; the rest by index in the plan."""

    samples: Sequence[Sample | None]  # num_logits for each sequence that did not fail; None: its logits were not finite
    prompts: Mapping[int, PromptResult] = MappingProxyType({})
    failures: Mapping[int, str] = MappingProxyType({})  # error texts of failed sequences
