"""Requests and a clock for tests of the scheduler."""

from typing import Any

from caravan.model.sampling.sampling_params import Pooling, SamplingParams
from caravan.scheduler.messages import Request


def make_request(
    request_id: int,
    prompt: list[int],
    *,
    salt: str = "",
    output: tuple[int, ...] | list[int] = (),
    grammar: str = "",
    key: str = "",
    priority: int = 0,
    urgency: int = 0,
    pooling: Pooling | None = None,
    group: int = 0,
    num_shared_tokens: int = 0,
    **params: Any,
) -> Request:
    """Return a greedy request with 4 tokens of output by default."""
    sampling = SamplingParams(**{"seed": 0, "max_tokens": 4, "temperature": 0.0} | params)
    return Request(
        request_id=request_id,
        prompt_token_ids=prompt,
        params=sampling,
        output_token_ids=list(output),
        cache_salt=salt,
        grammar=grammar,
        key=key,
        priority=priority,
        urgency=urgency,
        pooling=pooling,
        group=group,
        num_shared_tokens=num_shared_tokens,
    )


class FakeClock:
    """A clock that a test advances."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds
