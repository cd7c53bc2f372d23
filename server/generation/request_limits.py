"""What one HTTP request may cost before and while it is answered, and how much of them may wait."""

from dataclasses import dataclass


@dataclass(frozen=True)
class RequestLimits:
    """Caps that uvicorn does not have; each can be set by the caller of `create_app`."""

    max_body_bytes: int = 8 * 2**20
    body_timeout_seconds: float = 60.0  # for the whole body to arrive
    max_choices: int = 256  # prompts times n of one request
    max_shown_tokens: int = 2**18  # in an answer of /tokenize; a model with a longer context shows as many as it takes
    keep_alive_seconds: float = 15.0  # of silence before a stream begins, or goes on, with a comment
    write_timeout_seconds: float = 30.0  # a client that takes nothing of a stream for so long is cut off


@dataclass(frozen=True)
class QueueLimits:
    """How much may wait."""

    max_requests: int = 512  # sequences
    max_tokens: int = 1_000_000  # of their prompts and answers
    max_wait_seconds: float | None = None  # None: however long it takes
