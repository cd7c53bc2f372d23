"""The requests and responses of POST /v1/learn/kill_engine."""

from typing import Literal

from pydantic import Field

from caravan.server.openai.protocol.response_model import ResponseModel
from caravan.server.openai.protocol.strict_model import StrictModel

CONFIRMATION = "kill the engine"


class KillRequest(StrictModel):
    """The body of POST /v1/learn/kill_engine."""

    confirm: Literal["kill the engine"] = Field(description="That the client means it.")
    model: str | None = Field(None, description="Default: the served model.")


class KilledEngine(ResponseModel):
    """The process that was killed."""

    model: str
    pid: int
