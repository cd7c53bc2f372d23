"""The time a client gives for an answer, by its header x-request-timeout-ms."""

import time

from caravan.server.generation.context import RequestContext
from caravan.server.generation.errors import DeadlineExceeded


def seconds_left(context: RequestContext, arrived_at_seconds: float) -> float | None:
    """Return how long the client still waits, None if for ever."""
    if context.timeout_seconds is None:
        return None
    return arrived_at_seconds + context.timeout_seconds - time.monotonic()


def out_of_time(context: RequestContext) -> DeadlineExceeded:
    """Return the error of an answer that was not complete in time."""
    return DeadlineExceeded(f"The answer was not complete within {context.timeout_seconds:g} s.", 1)
