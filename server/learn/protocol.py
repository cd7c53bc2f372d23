"""The requests and responses of POST /v1/learn/trace."""

from typing import Annotated

import msgspec
from pydantic import Field

from caravan.server.openai.protocol.response_model import ResponseModel
from caravan.server.openai.protocol.strict_model import StrictModel

MAX_TOKENS = 64  # of a trace
_BYTES = msgspec.Meta(extra_json_schema={"format": "byte"})


class TraceRequest(StrictModel):
    """The body of POST /v1/learn/trace."""

    model: str | None = Field(None, description="Default: the served model.")
    text: str = Field(min_length=1, max_length=4000, description=f"At most {MAX_TOKENS} tokens, the template's too.")
    is_chat: bool = Field(True, description="Write the text as a user's message with the chat template, if any.")
    layer: int = Field(0, ge=0, description="The layer whose tensors are shown.")
    head: int = Field(0, ge=0, description="The query head whose rows are shown.")
    position: int | None = Field(None, ge=0, description="The token whose rows are shown. Default: the last one.")


class TracedTensor(ResponseModel):
    """A tensor: its name, its shape, and the first five numbers of one row."""

    name: str
    shape: list[int]
    where: str  # which row
    numbers: list[float | None]  # None: minus infinity


class TracedStop(ResponseModel):
    """What the model computes at one stop on the way from token ids to logits."""

    name: str
    tensors: list[TracedTensor]


class ModelTrace(ResponseModel):
    """What the process of traces reports."""

    num_layers: int
    num_heads: int
    num_kv_heads: int
    stops: list[TracedStop]
    attention: Annotated[str, _BYTES]  # weights of the layer times 255, bytes [num_heads, T, T]
    habits: list[list[list[float | None]]]  # of each layer and head: see head_habits in attention_weights.py
    lens: list[list[tuple[int, float]]]  # after each layer: token ids and probabilities, likeliest first
    logits: Annotated[str, _BYTES]  # float32, little-endian, [vocab_size]
    likeliest: list[tuple[int, float]]  # after the last layer: as in `lens`, but more


class TracedToken(ResponseModel):
    """A token and its text; a part of a character is shown as U+FFFD."""

    id: int
    text: str


class LikelyToken(TracedToken):
    """A token that may come next, with its probability at temperature 1."""

    probability: float


class Trace(ResponseModel):
    """One text on its way through the model, computed in plain PyTorch in float32."""

    model: str
    prompt: str  # the text as the chat template writes it
    tokens: list[TracedToken]
    layer: int
    head: int
    position: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    stops: list[TracedStop]
    attention: Annotated[str, _BYTES]
    habits: list[list[list[float | None]]]
    lens: list[list[LikelyToken]]
    logits: Annotated[str, _BYTES]
    likeliest: list[LikelyToken]
