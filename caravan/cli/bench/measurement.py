"""Measurement: what happened to one request, as its client saw it."""

import itertools
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Measurement:
    """One request. Times are in seconds from the start of the run; `error` is the kind of failure, if it failed."""

    due: float  # when it should have been sent; what a user would count from
    sent: float
    ended: float
    prompt_tokens: int = 0
    output_tokens: int = 0
    token_times: list[float] = field(default_factory=list)  # empty if the answer was not streamed
    error: str | None = None
    error_text: str = ""

    @property
    def seconds(self) -> float:
        """Seconds from the time the request was due to its end."""
        return self.ended - self.due

    @property
    def first_token_seconds(self) -> float | None:
        """Seconds from the time the request was due to its first token."""
        return self.token_times[0] - self.due if self.token_times else None

    @property
    def gaps(self) -> list[float]:
        """Seconds between successive events with tokens."""
        return [later - earlier for earlier, later in itertools.pairwise(self.token_times)]

    @property
    def seconds_per_token(self) -> float | None:
        """Mean seconds between tokens, by the server's count of tokens."""
        if len(self.token_times) < 2 or self.output_tokens < 2:
            return None
        return (self.token_times[-1] - self.token_times[0]) / (self.output_tokens - 1)
