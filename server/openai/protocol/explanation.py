"""The story of a request, for the OpenAPI document and for answers that end with it."""

from pydantic import BaseModel, ConfigDict


class Moment(BaseModel):
    """Something that happened; what else it tells depends on the event."""

    model_config = ConfigDict(extra="allow")

    at_ms: float  # since the request arrived
    event: str


class ChoiceSteps(BaseModel):
    """How many of the engine's steps one choice took, and in what company."""

    choice: int
    engine_request: int  # its number in the live view
    tokens: int
    steps: int
    mean_batch: float
    largest_batch: int
    finish_reason: str | None  # None: it still runs


class Explanation(BaseModel):
    """What became of one request, moment by moment."""

    id: str
    request_id: str
    object: str
    arrived_at: float  # seconds since 1970
    is_finished: bool
    timeline: list[Moment]
    left_out: int  # later moments of a kind that was told before
    choices: list[ChoiceSteps]
