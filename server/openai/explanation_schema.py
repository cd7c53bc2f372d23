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
    tokens: int
    steps: int
    mean_batch: float
    largest_batch: int


class Explanation(BaseModel):
    """What became of one request, moment by moment."""

    id: str
    request_id: str
    object: str
    arrived_at: float  # seconds since 1970
    is_finished: bool
    timeline: list[Moment]
    left_out: int  # moments behind the last one that is kept
    choices: list[ChoiceSteps]
