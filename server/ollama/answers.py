"""The responses of Ollama's API; those of /api/chat and /api/generate are also the lines of a stream."""

from datetime import datetime
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, UnsetType
from pydantic import BaseModel

from caravan.server.observe.explanation import Explanation
from caravan.server.openai.protocol.response_model import ChosenTokenLogprob, ResponseModel


class OllamaError(BaseModel):
    """The body of every error response under /api."""

    error: str


class AnswerFunction(ResponseModel, kw_only=True):
    """The function of a call, and its arguments."""

    name: str
    arguments: dict[str, Any]


class AnswerCall(ResponseModel, kw_only=True):
    """A function call."""

    id: str
    function: AnswerFunction


class AnswerMessage(ResponseModel, kw_only=True):
    """A message of the assistant, or the next part of one."""

    role: Literal["assistant"] = "assistant"
    content: str
    thinking: str | UnsetType = UNSET
    tool_calls: list[AnswerCall] | UnsetType = UNSET


DoneReason = Literal["stop", "length", "load"]


class Answer(ResponseModel, kw_only=True):
    """The common fields of lines and of whole responses. Durations are in nanoseconds."""

    model: str
    created_at: datetime
    done: bool  # false: more lines follow
    done_reason: DoneReason | UnsetType = UNSET
    total_duration: int | UnsetType = UNSET  # since the request arrived
    load_duration: int | UnsetType = UNSET  # until it joined the batch: its queue, and the load of a model that slept
    prompt_eval_count: int | UnsetType = UNSET  # tokens of the prompt, those found in the prefix cache included
    prompt_eval_duration: int | UnsetType = UNSET  # until the first token
    eval_count: int | UnsetType = UNSET  # tokens generated
    eval_duration: int | UnsetType = UNSET  # from the first token to the last one
    logprobs: list[ChosenTokenLogprob] | UnsetType = UNSET
    warnings: list[str] | UnsetType = UNSET
    explanation: Explanation | UnsetType = UNSET


class OllamaChatAnswer(Answer, kw_only=True):
    """The response of POST /api/chat, or a line of it."""

    message: AnswerMessage


class OllamaGenerateAnswer(Answer, kw_only=True):
    """The response of POST /api/generate, or a line of it."""

    response: str
    thinking: str | UnsetType = UNSET


Vector = Annotated[msgspec.Raw, msgspec.Meta(extra_json_schema={"type": "array", "items": {"type": "number"}})]


class OllamaEmbedAnswer(ResponseModel, kw_only=True):
    """The response of POST /api/embed."""

    model: str
    embeddings: list[Vector]
    total_duration: int  # nanoseconds
    load_duration: int
    prompt_eval_count: int
    warnings: list[str] | UnsetType = UNSET
    explanation: Explanation | UnsetType = UNSET


class OllamaEmbeddingAnswer(ResponseModel, kw_only=True):
    """The response of POST /api/embeddings."""

    embedding: Vector
    warnings: list[str] | UnsetType = UNSET
    explanation: Explanation | UnsetType = UNSET


class ModelDetails(ResponseModel, kw_only=True):
    """What a model is; empty texts are not known."""

    parent_model: str = ""
    format: str = ""
    family: str
    families: list[str]
    parameter_size: str = ""
    quantization_level: str = ""  # the type of the weights in the files, such as Q4_K_M


class ListedModel(ResponseModel, kw_only=True):
    """A model that requests can name."""

    name: str
    model: str
    modified_at: datetime  # when the server started
    size: int  # bytes of the weights in memory; 0 until they are loaded
    digest: str
    details: ModelDetails
    capabilities: list[str]


class OllamaModelList(ResponseModel, kw_only=True):
    """The response of GET /api/tags."""

    models: list[ListedModel]


class LoadedModel(ResponseModel, kw_only=True):
    """A model whose weights are loaded."""

    name: str
    model: str
    size: int
    digest: str
    details: ModelDetails
    expires_at: datetime  # far in the future: no request decides when a model sleeps
    size_vram: int
    context_length: int


class OllamaLoadedList(ResponseModel, kw_only=True):
    """The response of GET /api/ps."""

    models: list[LoadedModel]


class OllamaModelInfo(ResponseModel, kw_only=True):
    """The response of POST /api/show."""

    modelfile: str = ""
    parameters: str
    template: str  # in Jinja; Ollama's own are in Go's language
    details: ModelDetails
    model_info: dict[str, Any]
    capabilities: list[str]
    modified_at: datetime
    warnings: list[str] | UnsetType = UNSET


class OllamaVersion(ResponseModel, kw_only=True):
    """The response of GET /api/version."""

    version: str  # of the API that these routes follow: clients compare it
    server: str
