"""GenerationError and its subclasses: what ends a request early. HTTP maps them to a status.

    GenerationError
      RequestRejected         a limit or the deadline would be exceeded
        QueueFull
        DeadlineExceeded
      InvalidGrammar          the engine cannot use the request's grammar
      GenerationFailed        the engine failed on it
      GenerationCancelled     the engine dropped it
      RequestCancelled        another request has ended it

EngineDied and EngineUnavailable (server/engine/output_queue.py) are raised when the engine process ends.
"""

from caravan.scheduler.messages import FinishReason


class GenerationError(Exception):
    """A request ended before its last token, or never started."""


class RequestRejected(GenerationError):
    """A limit or the deadline would be exceeded; the text is a fact for the client."""

    def __init__(self, fact: str, retry_after_seconds: float) -> None:
        super().__init__(fact)
        self.retry_after_seconds = retry_after_seconds


class QueueFull(RequestRejected):
    """The request would exceed a limit of the queue or of the waiting time."""


class DeadlineExceeded(RequestRejected):
    """The response is not, or would not be, complete before the request's deadline."""


class InvalidGrammar(GenerationError):
    """The engine cannot use the request's grammar; the text is for the client."""

    def __init__(self, reason: str, param: str = "") -> None:
        """`param` is the request field that specifies the grammar."""
        super().__init__(reason)
        self.param = param


class GenerationFailed(GenerationError):
    """The engine failed on the request; the text is for the log, not for the client."""


class GenerationCancelled(GenerationError):
    """The engine dropped the request although its reader did not abort it."""


class RequestCancelled(GenerationError):
    """Another request has ended this one; the text is for the client."""

    def __init__(self) -> None:
        super().__init__("The response was ended by another request.")


def failure_reason(error: Exception) -> FinishReason:
    """Return the finish reason of a choice that ended with this error."""
    return "abort" if isinstance(error, GenerationCancelled | RequestCancelled) else "error"
