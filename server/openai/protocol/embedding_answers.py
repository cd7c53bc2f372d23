"""The response of POST /v1/embeddings."""

from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, UnsetType

from caravan.server.observe.explanation import Explanation
from caravan.server.openai.protocol.answer import Answered

Vector = Annotated[
    msgspec.Raw,
    msgspec.Meta(extra_json_schema={"anyOf": [{"type": "array", "items": {"type": "number"}}, {"type": "string"}]}),
]


class Embedding(Answered, kw_only=True):
    """A vector, in base64 if that was asked for."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: Vector


class EmbeddingUsage(Answered, kw_only=True):
    """Token counts of texts."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingList(Answered, kw_only=True):
    """The response of POST /v1/embeddings."""

    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage
    warnings: list[str] | UnsetType = UNSET
    explanation: Explanation | UnsetType = UNSET
