"""The field `repetition_detection`."""

from typing import Self

from pydantic import Field, model_validator

from caravan.model.sampling.sampling_params import MAX_PATTERN, Repetition
from caravan.server.http.errors import invalid
from caravan.server.openai.protocol.strict_model import StrictModel


class RepetitionDetection(StrictModel):
    """When a text counts as repeating itself: a pattern of tokens comes several times in a row."""

    max_pattern_size: int = Field(ge=1, le=MAX_PATTERN, description="Largest length of the pattern, in tokens.")
    min_pattern_size: int = Field(1, ge=1, le=MAX_PATTERN, description="Smallest length of the pattern.")
    min_count: int = Field(ge=2, le=1000, description="Number of times that it comes.")

    @model_validator(mode="after")
    def _sizes_are_ordered(self) -> Self:
        if self.min_pattern_size > self.max_pattern_size:
            raise invalid(
                f"`min_pattern_size` is {self.min_pattern_size}; it must be at most `max_pattern_size`, which is "
                f"{self.max_pattern_size}.",
                "repetition_detection",
            )
        return self

    def rule(self) -> Repetition:
        """Return the same for the engine."""
        return Repetition(self.min_pattern_size, self.max_pattern_size, self.min_count)
