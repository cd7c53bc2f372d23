"""The bodies of completion and chat requests: every field, its type and its bounds.

A field given as null means its default. A field this version does not support takes only its harmless values; a field
of OpenAI's that means nothing here is accepted and named in a warning; any other field is refused.
"""

from abc import abstractmethod
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from server.openai.errors import invalid
from server.openai.fields import (
    ContentField,
    Ignored,
    LogitBiasField,
    NoEffect,
    PromptField,
    StopField,
    Unsupported,
    only,
)

MAX_LOGPROBS = 20


def _let_fields_be_null(schema: dict[str, Any]) -> None:
    """Say in the JSON schema that a field with a default may be null."""
    for name, field in schema["properties"].items():
        if name not in schema.get("required", []) and "default" in field and field["default"] is not None:
            kind = {key: field.pop(key) for key in list(field) if key not in ("default", "description", "title")}
            field["anyOf"] = [*kind.pop("anyOf", []), *([kind] if kind else []), {"type": "null"}]


class StrictModel(BaseModel):
    """No conversions, no unknown fields, null for the default."""

    model_config = ConfigDict(
        strict=True, extra="forbid", allow_inf_nan=False, json_schema_extra=_let_fields_be_null, protected_namespaces=()
    )

    @model_validator(mode="before")
    @classmethod
    def _null_means_default(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        optional = {name for name, field in cls.model_fields.items() if not field.is_required()}
        return {name: item for name, item in value.items() if item is not None or name not in optional}


class StreamOptions(StrictModel):
    """What a stream carries beside the text."""

    include_usage: bool = False
    include_obfuscation: Ignored = None


class GenerationRequest(StrictModel):
    """What completions and chat have in common."""

    model: str
    n: int = Field(1, ge=1, le=128, description="How many choices for each prompt.")
    stream: bool = False
    stream_options: StreamOptions | None = None

    temperature: float = Field(1.0, ge=0, le=2, description="0 takes the most probable token.")
    top_p: float = Field(1.0, ge=0, le=1)
    top_k: int = Field(0, ge=-1, lt=2**31, description="0 or -1: all tokens.")
    min_p: float = Field(0.0, ge=0, le=1)
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    repetition_penalty: float = Field(1.0, gt=0, le=10)
    logit_bias: LogitBiasField = {}
    seed: int | None = Field(None, ge=-(2**63), lt=2**64, description="Makes the request repeatable.")

    max_tokens: int | None = Field(None, ge=1)
    min_tokens: int = Field(0, ge=0, description="Before this many tokens nothing but max_tokens ends a choice.")
    ignore_eos: bool = False
    stop: StopField = []
    stop_token_ids: list[int] = Field([], max_length=128)
    include_stop_str_in_output: bool = False
    return_token_ids: bool = False
    cache_salt: str = Field("", max_length=256, description="Cached prefixes are shared within one salt only.")

    prompt_logprobs: Unsupported = None
    regex: Unsupported = None
    grammar: Unsupported = None
    priority: Annotated[int, only(0)] = 0

    user: Ignored = None
    metadata: Ignored = None
    moderation: Ignored = None
    prompt_cache_key: Ignored = None
    prompt_cache_options: Ignored = None
    prompt_cache_retention: Ignored = None
    safety_identifier: Ignored = None
    service_tier: Ignored = None
    store: Ignored = None

    @property
    def include_usage(self) -> bool:
        """The stream ends with a chunk of usage."""
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def max_new_tokens(self) -> int | None:
        """How many tokens were asked for, under whatever name."""
        return self.max_tokens

    @property
    @abstractmethod
    def num_logprobs(self) -> int | None:
        """How many alternatives to report at each position; None: no log-probabilities at all."""

    def warnings(self) -> list[str]:
        """Return a sentence for each field of the request that has no effect."""
        fields = _ignored_fields(self, "")
        if self.stream_options is not None:
            fields += _ignored_fields(self.stream_options, "stream_options.")
        return [f"`{name}` has no effect on this server." for name in fields]

    @model_validator(mode="after")
    def _stream_options_need_a_stream(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise invalid("`stream_options` needs `stream` to be true.", "stream_options")
        return self


class CompletionRequest(GenerationRequest):
    """The body of POST /v1/completions."""

    prompt: PromptField
    logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    best_of: int | None = Field(None, description="Not supported unless it equals n.")
    echo: Annotated[bool, only(False)] = False
    suffix: Annotated[Any, only(None, "")] = None

    @property
    def num_logprobs(self) -> int | None:
        """See GenerationRequest."""
        return self.logprobs

    @model_validator(mode="after")
    def _best_of_is_n(self) -> Self:
        if self.best_of is not None and self.best_of != self.n:
            raise invalid(f"`best_of` is {self.best_of}; this version only supports it equal to `n`.", "best_of")
        return self


class Message(StrictModel):
    """One turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"] = Field(
        description="developer is another name of system."
    )
    content: ContentField
    name: str | None = Field(None, max_length=256)
    tool_call_id: str | None = Field(None, max_length=256)

    # What an answer of ours, or of OpenAI, has and a client may send back with the next question.
    refusal: Unsupported = None
    audio: Unsupported = None
    function_call: Unsupported = None
    annotations: Annotated[Any, only(None, [])] = None
    tool_calls: Annotated[Any, only(None, [])] = None


class ChatRequest(GenerationRequest):
    """The body of POST /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1, max_length=4096)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool = False
    top_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    add_generation_prompt: bool | None = Field(None, description="True unless continue_final_message is.")
    continue_final_message: bool = False

    response_format: Annotated[Any, only(None, {"type": "text"})] = None
    tools: Annotated[Any, only(None, [])] = None
    tool_choice: Annotated[Any, only(None, "none", "auto")] = None
    parallel_tool_calls: bool = Field(True, description="Means nothing without tools.")
    functions: Annotated[Any, only(None, [])] = None
    function_call: Annotated[Any, only(None, "none", "auto")] = None
    modalities: Annotated[Any, only(None, ["text"])] = None
    audio: Unsupported = None
    chat_template: Unsupported = Field(None, description="Templates from requests are refused.")
    chat_template_kwargs: Unsupported = None

    prediction: Ignored = None
    reasoning_effort: Ignored = None
    verbosity: Ignored = None
    web_search_options: Ignored = None

    @property
    def max_new_tokens(self) -> int | None:
        """See GenerationRequest."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def num_logprobs(self) -> int | None:
        """See GenerationRequest."""
        return (self.top_logprobs or 0) if self.logprobs else None

    @model_validator(mode="after")
    def _fields_agree(self) -> Self:
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            raise invalid("`max_tokens` and `max_completion_tokens` differ; send one of them.", "max_tokens")
        if self.top_logprobs is not None and not self.logprobs:
            raise invalid("`top_logprobs` needs `logprobs` to be true.", "top_logprobs")
        if self.continue_final_message and self.add_generation_prompt:
            raise invalid(
                "`continue_final_message` and `add_generation_prompt` exclude each other.", "continue_final_message"
            )
        return self


def _ignored_fields(model: BaseModel, prefix: str) -> list[str]:
    return [
        prefix + name
        for name, field in type(model).model_fields.items()
        if name in model.model_fields_set and any(isinstance(mark, NoEffect) for mark in field.metadata)
    ]
