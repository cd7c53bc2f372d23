"""The responses of GET /v1/models."""

from typing import Literal

from caravan.server.engine.client import EngineState
from caravan.server.openai.protocol.response_model import ResponseModel


class ModelEntry(ResponseModel, kw_only=True):
    """A name of a served model."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "caravan"
    root: str
    parent: str | None = None  # of an adapter: the model that it changes
    max_model_len: int
    state: EngineState


class ModelList(ResponseModel, kw_only=True):
    """The response of GET /v1/models."""

    object: Literal["list"] = "list"
    data: list[ModelEntry]
