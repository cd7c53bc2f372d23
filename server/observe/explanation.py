"""Explanation: the record of a request, as sent to its client."""

from typing import Any

import msgspec


class ChoiceSteps(msgspec.Struct, kw_only=True):
    """The engine's steps for one choice, and the sizes of their batches."""

    engine_request: int  # its number in the live view
    choice: int
    tokens: int
    steps: int
    mean_batch: float
    largest_batch: int
    finish_reason: str | None  # None: not finished


class Explanation(msgspec.Struct, kw_only=True):
    """The events of one request, and the steps of its choices."""

    id: str
    request_id: str
    object: str = "request.explanation"
    arrived_at: float  # seconds since 1970
    is_finished: bool
    timeline: list[dict[str, Any]]  # each has at_ms, the milliseconds since the request arrived, and event
    left_out: int  # events that exceeded the record's limit
    choices: list[ChoiceSteps]
