"""RequestLimits and QueueLimits: limits for one HTTP request and for the queue."""

from dataclasses import dataclass


@dataclass(frozen=True)
class RequestLimits:
    """Limits for one HTTP request."""

    max_body_bytes: int = 8 * 2**20
    body_timeout_seconds: float = 60.0  # to receive the whole body
    max_choices: int = 256  # prompts times n of one request
    max_shown_tokens: int = 2**18  # in a response of /tokenize; at least the length of the model's context
    keep_alive_seconds: float = 15.0  # without output before a stream sends a comment
    write_timeout_seconds: float = 30.0  # for a client to read from its stream


@dataclass(frozen=True)
class QueueLimits:
    """Limits of the queue."""

    max_requests: int = 512  # sequences
    max_tokens: int = 1_000_000  # prompts and max_tokens of these sequences
    max_wait_seconds: float | None = None  # None: no limit
