"""The bodies of completion and chat requests: every field, its type and its bounds.

A field given as null means its default. Fields that other servers know and that mean nothing here are in a table of
their own (known_fields.py): most are accepted and named in a warning. Any other field is refused.
"""

from abc import abstractmethod
from typing import ClassVar, Self

from pydantic import Field, model_validator

from caravan.server.http.errors import invalid
from caravan.server.openai.protocol.fields import LogitBiasField, StopField
from caravan.server.openai.protocol.known_fields import STREAM_OPTIONS, KnownFields
from caravan.server.openai.protocol.strict_model import StrictModel, ignored_fields, ignored_warnings
from caravan.server.openai.protocol.structured_fields import JsonSchemaFormat, StructuredOutputFields, schema_warnings


class SamplingFields(StrictModel):
    """How tokens are drawn, what ends a text, and who waits for it."""

    top_k: int = Field(0, ge=-1, lt=2**31, description="0 or -1: all tokens.")
    min_p: float = Field(0.0, ge=0, le=1)
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    repetition_penalty: float = Field(1.0, gt=0, le=10)
    logit_bias: LogitBiasField = Field({})
    seed: int | None = Field(
        None,
        ge=-(2**63),
        lt=2**64,
        description="Makes the request repeatable; -1 means none, as in vLLM and llama.cpp.",
    )

    min_tokens: int = Field(0, ge=0, description="Before this many tokens nothing but max_tokens ends a choice.")
    ignore_eos: bool = False
    stop: StopField = Field([])
    stop_token_ids: list[int] = Field([], max_length=128)
    include_stop_str_in_output: bool = False
    return_token_ids: bool = False
    cache_salt: str = Field("", max_length=256, description="Cached prefixes are shared within one salt only.")

    explain: bool = Field(False, description="The answer ends with what became of the request, moment by moment.")
    priority: int = Field(
        0, ge=-1000, le=1000, description="Within a key, requests of a lower number are served sooner."
    )


MAX_LOGPROBS = 20


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
