"""The bodies of completion and chat requests: every field, its type and its bounds.

A field given as null means its default. A field this version does not support takes only its harmless values; a field
of OpenAI's that means nothing here is accepted and named in a warning; any other field is refused.
"""

from abc import abstractmethod
from typing import Annotated, Any, Self

from pydantic import BaseModel, Field, model_validator

from server.openai.errors import invalid
from server.openai.fields import (
    Ignored,
    LogitBiasField,
    NoEffect,
    Only,
    PromptField,
    StopField,
    Unsupported,
)
from server.openai.messages import Conversation
from server.openai.response_format import JsonSchemaFormat
from server.openai.strict_model import StrictModel
from server.openai.structured_output import StructuredOutputFields, schema_warnings
from server.openai.tool_schemas import Tool, ToolChoiceField, strictness_warnings

MAX_LOGPROBS = 20


class StreamOptions(StrictModel):
    """What a stream carries beside the text."""

    include_usage: bool = False
    include_obfuscation: Ignored = None


class GenerationRequest(StructuredOutputFields):
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
    logit_bias: LogitBiasField = Field({})
    seed: int | None = Field(None, ge=-(2**63), lt=2**64, description="Makes the request repeatable.")

    max_tokens: int | None = Field(None, ge=1)
    min_tokens: int = Field(0, ge=0, description="Before this many tokens nothing but max_tokens ends a choice.")
    ignore_eos: bool = False
    stop: StopField = Field([])
    stop_token_ids: list[int] = Field([], max_length=128)
    include_stop_str_in_output: bool = False
    return_token_ids: bool = False
    cache_salt: str = Field("", max_length=256, description="Cached prefixes are shared within one salt only.")

    prompt_logprobs: int | None = Field(
        None, ge=0, le=MAX_LOGPROBS, description="Also report how probable each token of the prompt was. Not streamed."
    )
    explain: bool = Field(False, description="The answer ends with what became of the request, moment by moment.")
    priority: int = Field(0, ge=-1000, le=1000, description="Requests of a lower number leave the queue sooner.")

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
    def num_choices(self) -> int:
        """How many choices are made of each prompt."""
        return self.n

    @property
    @abstractmethod
    def num_logprobs(self) -> int | None:
        """How many alternatives to report at each position; None: no log-probabilities at all."""

    @property
    def num_prompt_logprobs(self) -> int | None:
        """How many alternatives to report at each position of the prompt; None: nothing."""
        return self.prompt_logprobs

    def warnings(self) -> list[str]:
        """Return a sentence for each field of the request that has no effect."""
        warnings = ignored_warnings(self) + self.old_form_warnings
        if self.structured_outputs is not None:
            warnings += ignored_warnings(self.structured_outputs, "structured_outputs.")
        warnings += schema_warnings(self.forms)
        if self.stream_options is not None:
            warnings += ignored_warnings(self.stream_options, "stream_options.")
        if isinstance(self.response_format, JsonSchemaFormat):
            warnings += ignored_warnings(self.response_format.json_schema, "response_format.json_schema.")
            if self.response_format.json_schema.is_lax:
                warnings.append("`response_format.json_schema.strict` has no effect: schemas are always enforced.")
        return warnings

    @model_validator(mode="after")
    def _prompt_logprobs_need_a_whole_answer(self) -> Self:
        if self.prompt_logprobs is not None and self.stream:
            raise invalid("`prompt_logprobs` cannot be streamed.", "prompt_logprobs")
        return self

    @model_validator(mode="after")
    def _stream_options_need_a_stream(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise invalid("`stream_options` needs `stream` to be true.", "stream_options")
        return self


class CompletionRequest(GenerationRequest):
    """The body of POST /v1/completions."""

    prompt: PromptField
    max_tokens: int | None = Field(None, ge=0, description="0 only together with `echo` or `prompt_logprobs`.")
    logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    best_of: int | None = Field(
        None, ge=1, le=128, description="How many choices are made, of which the n most probable are returned."
    )
    echo: bool = Field(False, description="The text begins with the prompt.")
    suffix: Annotated[Any, Only(None, "")] = None

    @property
    def num_logprobs(self) -> int | None:
        """See GenerationRequest."""
        return self.logprobs

    @property
    def num_prompt_logprobs(self) -> int | None:
        """See GenerationRequest."""
        wanted = [self.prompt_logprobs, self.logprobs if self.echo else None]
        return max((number for number in wanted if number is not None), default=None)

    @property
    def num_choices(self) -> int:
        """See GenerationRequest."""
        return self.n if self.best_of is None else self.best_of

    @model_validator(mode="after")
    def _something_is_wanted(self) -> Self:
        if self.max_tokens == 0 and not self.echo and self.prompt_logprobs is None:
            raise invalid("`max_tokens` is 0; it must be at least 1 without `echo` or `prompt_logprobs`.", "max_tokens")
        return self

    @model_validator(mode="after")
    def _best_of_is_at_least_n(self) -> Self:
        if self.num_choices < self.n:
            raise invalid(f"`best_of` is {self.best_of}; it must be at least `n`, which is {self.n}.", "best_of")
        if self.stream and self.num_choices > self.n:
            raise invalid(
                "`best_of` above `n` cannot be streamed: the best are known when all are complete.", "best_of"
            )
        return self


class ChatRequest(Conversation, GenerationRequest):
    """The body of POST /v1/chat/completions."""

    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool = False
    top_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)

    tool_choice: ToolChoiceField = "auto"
    parallel_tool_calls: bool = Field(True, description="False: at most one call.")
    functions: Annotated[Any, Only(None, [])] = None
    function_call: Annotated[Any, Only(None, "none", "auto")] = None
    modalities: Annotated[Any, Only(None, ["text"])] = None
    audio: Unsupported = None
    chat_template: Unsupported = Field(None, description="Templates from requests are refused.")
    chat_template_kwargs: Unsupported = None

    @property
    def shown_tools(self) -> list[Tool]:
        """See Conversation."""
        return [] if self.tool_choice == "none" else self.tools

    @property
    def required_tools(self) -> list[Tool]:
        """The functions of which the answer must call one; none: it need not."""
        if self.tool_choice in ("none", "auto"):
            return []
        name = self.tool_choice.removeprefix("function ")
        return [tool for tool in self.tools if self.tool_choice == "required" or tool.function.name == name]

    @property
    def allows_several_calls(self) -> bool:
        """The answer may call more than one function; a choice that names one means one call of it."""
        return self.parallel_tool_calls and not self.tool_choice.startswith("function ")

    def warnings(self) -> list[str]:
        """See GenerationRequest."""
        return super().warnings() + strictness_warnings([tool.function for tool in self.tools], self.tool_choice)

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
        if self.tool_choice not in ("none", "auto") and not self.required_tools:
            raise invalid("`tool_choice` wants a function that `tools` does not have.", "tool_choice")
        if self.top_logprobs is not None and not self.logprobs:
            raise invalid("`top_logprobs` needs `logprobs` to be true.", "top_logprobs")
        return self


def ignored_warnings(model: BaseModel, prefix: str = "") -> list[str]:
    """Return a sentence for each field that is set and has no effect, its name behind the prefix."""
    return [
        f"`{prefix}{name}` has no effect on this server."
        for name, field in type(model).model_fields.items()
        if name in model.model_fields_set and any(isinstance(mark, NoEffect) for mark in field.metadata)
    ]
