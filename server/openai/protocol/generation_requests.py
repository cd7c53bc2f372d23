"""The bodies of completion and chat requests: every field, its type and its bounds.

A field given as null means its default. Fields that other servers know and that mean nothing here are in a table of
their own (known_fields.py): most are accepted and named in a warning. Any other field is refused.
"""

from abc import abstractmethod
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from caravan.server.http.errors import invalid
from caravan.server.openai.protocol.fields import PromptField
from caravan.server.openai.protocol.ignored_fields import ignored_fields, ignored_warnings
from caravan.server.openai.protocol.known_field import KnownFields
from caravan.server.openai.protocol.known_fields import CHAT, COMPLETION, STREAM_OPTIONS
from caravan.server.openai.protocol.messages import Conversation
from caravan.server.openai.protocol.response_format import JsonSchemaFormat
from caravan.server.openai.protocol.sampling_fields import SamplingFields
from caravan.server.openai.protocol.strict_model import StrictModel
from caravan.server.openai.protocol.structured_fields import StructuredOutputFields, schema_warnings
from caravan.server.openai.protocol.tools import Tool, ToolChoiceField, strictness_warnings

MAX_LOGPROBS = 20


def _false_is_none(value: Any) -> Any:
    return None if value is False else value


_LogprobsInput = Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | Literal[False] | None


class StreamOptions(StrictModel):
    """What a stream carries beside the text."""

    known_fields: ClassVar[KnownFields] = STREAM_OPTIONS

    include_usage: bool = Field(False, description="The stream ends with a chunk that has the usage.")
    continuous_usage_stats: bool = Field(False, description="Every chunk has the usage so far.")


class GenerationRequest(SamplingFields, StructuredOutputFields):
    """What completions and chat have in common."""

    model: str
    n: int = Field(1, ge=1, le=128, description="How many choices for each prompt.")
    stream: bool = False
    stream_options: StreamOptions | None = None

    temperature: float = Field(1.0, ge=0, le=2, description="0 takes the most probable token.")
    top_p: float = Field(1.0, ge=0, le=1)
    max_tokens: int | None = Field(None, ge=1)

    prompt_logprobs: int | None = Field(
        None, ge=0, le=MAX_LOGPROBS, description="Also report how probable each token of the prompt was. Not streamed."
    )

    @property
    def include_usage(self) -> bool:
        """The stream ends with a chunk of usage."""
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def has_continuous_usage(self) -> bool:
        """Every chunk of the stream has the usage so far."""
        return self.stream_options is not None and self.stream_options.continuous_usage_stats

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
        warnings = ignored_warnings(ignored_fields(self)) + self.old_form_warnings + schema_warnings(self.forms)
        if isinstance(self.response_format, JsonSchemaFormat) and self.response_format.json_schema.is_lax:
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

    known_fields: ClassVar[KnownFields] = COMPLETION

    prompt: PromptField
    add_special_tokens: bool = Field(
        True, description="With what the model wants before and behind a text: BOS, EOS. Token ids stay as they are."
    )
    max_tokens: int | None = Field(None, ge=0, description="0 only together with `echo` or `prompt_logprobs`.")
    logprobs: Annotated[int | None, BeforeValidator(_false_is_none, _LogprobsInput)] = Field(
        None, ge=0, le=MAX_LOGPROBS, description="false means none."
    )
    best_of: int | None = Field(
        None, ge=1, le=128, description="How many choices are made, of which the n most probable are returned."
    )
    echo: bool = Field(False, description="The text begins with the prompt.")

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

    known_fields: ClassVar[KnownFields] = CHAT

    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool = False
    top_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS, description="Above 0 only together with `logprobs`.")

    tool_choice: ToolChoiceField = "auto"
    parallel_tool_calls: bool = Field(True, description="False: at most one call.")

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
        if self.top_logprobs and not self.logprobs:
            raise invalid("`top_logprobs` needs `logprobs` to be true.", "top_logprobs")
        return self
