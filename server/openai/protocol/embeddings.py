"""The request and response of POST /v1/embeddings."""

from typing import Annotated, ClassVar, Literal

import msgspec
from msgspec import UNSET, UnsetType
from pydantic import Field

from caravan.model.sampling.sampling_params import Pooling
from caravan.server.observe.explanation import Explanation
from caravan.server.openai.protocol.fields import PromptField
from caravan.server.openai.protocol.known_field import KnownFields
from caravan.server.openai.protocol.known_fields import EMBEDDING
from caravan.server.openai.protocol.response_model import ResponseModel
from caravan.server.openai.protocol.strict_model import StrictModel


class EmbeddingRequest(StrictModel):
    """The body of POST /v1/embeddings."""

    known_fields: ClassVar[KnownFields] = EMBEDDING

    model: str
    input: PromptField
    encoding_format: Literal["float", "base64"] = Field(
        "float", description="base64: the numbers as little-endian float32."
    )
    dimensions: int | None = Field(None, ge=1, description="Number of leading components, normalized to length 1.")
    pooling: Pooling = Field("mean", description="Pooling of the last hidden states: their mean, or the last one.")
    priority: int = Field(
        0, ge=-1000, le=1000, description="Among requests of one API key, lower numbers are scheduled first."
    )
    cache_salt: str = Field("", max_length=256, description="Cached prefixes are shared only if salts are equal.")
    explain: bool = Field(False, description="Add the events of the request, with times, to the response.")


Vector = Annotated[
    msgspec.Raw,
    msgspec.Meta(extra_json_schema={"anyOf": [{"type": "array", "items": {"type": "number"}}, {"type": "string"}]}),
]


class Embedding(ResponseModel, kw_only=True):
    """A vector, in base64 if requested."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: Vector


class EmbeddingUsage(ResponseModel, kw_only=True):
    """Token counts of texts."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingList(ResponseModel, kw_only=True):
    """The response of POST /v1/embeddings."""

    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage
    warnings: list[str] | UnsetType = UNSET
    explanation: Explanation | UnsetType = UNSET
