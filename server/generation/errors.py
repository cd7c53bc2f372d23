"""What can end a request before its last token: GenerationError and its kinds, which HTTP maps to a status.

    GenerationError
      RequestRejected         there is no room or no time for it
        QueueFull
        DeadlineExceeded
      InvalidGrammar          the engine cannot use the request's grammar
      GenerationFailed        the engine gave up on it
      GenerationCancelled     the engine dropped it

An engine that ends raises EngineDied or EngineUnavailable (server/engine/output_queue.py).
"""

from caravan.scheduler.messages import FinishReason


class GenerationError(Exception):
    """A request ended before its last token, or never started."""


class RequestRejected(GenerationError):
    """There is no room or no time for the request now; the text is a fact for the client."""

    def __init__(self, fact: str, retry_after_seconds: float) -> None:
        super().__init__(fact)
        self.retry_after_seconds = retry_after_seconds


class QueueFull(RequestRejected):
    """The request would pass a limit of the queue, or wait there longer than the limit."""


class DeadlineExceeded(RequestRejected):
    """The answer is not, or would not be, complete within the time its client gave."""


class InvalidGrammar(GenerationError):
    """The engine cannot use the request's grammar; the text is for the client, who can correct it."""

    def __init__(self, reason: str, param: str = "") -> None:
        """`param` is the request's field that the grammar comes from."""
        super().__init__(reason)
        self.param = param


class GenerationFailed(GenerationError):
    """The engine gave up on the request; the text says why, for the log and not for the client."""


class GenerationCancelled(GenerationError):
    """The engine dropped the request although its reader did not ask for it."""


def failure_reason(error: Exception) -> FinishReason:
    """Return the finish reason of a choice that ended with this error."""
    return "abort" if isinstance(error, GenerationCancelled) else "error"
