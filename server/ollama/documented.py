"""The OpenAPI documentation of Ollama's routes."""

from typing import Any

import msgspec
from pydantic import BaseModel

from caravan.server.http.openapi import documented, errors
from caravan.server.ollama.answers import (
    OllamaChatAnswer,
    OllamaEmbedAnswer,
    OllamaEmbeddingAnswer,
    OllamaError,
    OllamaGenerateAnswer,
    OllamaLoadedList,
    OllamaModelInfo,
    OllamaModelList,
    OllamaVersion,
)
from caravan.server.ollama.requests import (
    OllamaChatRequest,
    OllamaEmbeddingRequest,
    OllamaEmbedRequest,
    OllamaGenerateRequest,
    OllamaShowRequest,
)

REQUESTS: list[type[BaseModel]] = [
    OllamaChatRequest,
    OllamaGenerateRequest,
    OllamaEmbedRequest,
    OllamaEmbeddingRequest,
    OllamaShowRequest,
]
ANSWERS: list[type[msgspec.Struct]] = [
    *(OllamaChatAnswer, OllamaGenerateAnswer, OllamaEmbedAnswer, OllamaEmbeddingAnswer),
    *(OllamaModelList, OllamaLoadedList, OllamaModelInfo, OllamaVersion),
]


def ollama_errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the documentation of error responses, whose body is `OllamaError`."""
    return errors(*statuses, model=OllamaError)


def ollama_documented(
    schema: type[BaseModel], example: dict[str, Any], *, answer: type[msgspec.Struct], is_streamed: bool = False
) -> dict[str, Any]:
    """Return the arguments of a route as `documented` does; a stream is lines of JSON."""
    arguments = documented(schema, example, answer=answer, error=OllamaError)
    if is_streamed:
        arguments["responses"][200]["content"]["application/x-ndjson"] = {}
    return arguments
