"""GenerationRequest: the common fields of completion and chat requests, with their types and bounds.

A field given as null has its default value. Fields of other servers that have no effect here are in known_fields.py;
most are accepted with a warning. Any other field is refused.
"""

from abc import abstractmethod
from typing import ClassVar, Self

from pydantic import Field, model_validator

from caravan.server.http.errors import invalid
from caravan.server.openai.protocol.fields import BadWordsField, LogitBiasField, StopField
from caravan.server.openai.protocol.known_field import KnownFields
from caravan.server.openai.protocol.known_fields import STREAM_OPTIONS
from caravan.server.openai.protocol.repetition_detection import RepetitionDetection
from caravan.server.openai.protocol.response_format import JsonSchemaFormat
from caravan.server.openai.protocol.strict_model import StrictModel, ignored_fields, ignored_warnings
from caravan.server.openai.protocol.structured_fields import StructuredOutputFields, schema_warnings

MAX_ALLOWED = 16_384


class SamplingFields(StrictModel):
    """Sampling, stop conditions and scheduling: the common fields of completions, chat and responses."""

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
        description="Makes sampling repeatable; -1 means no seed.",
    )

    min_tokens: int = Field(0, ge=0, description="Least number of tokens; only `max_tokens` ends a choice before.")
    ignore_eos: bool = False
    stop: StopField = Field([])
    stop_token_ids: list[int] = Field([], max_length=128)
    include_stop_str_in_output: bool = False
    allowed_token_ids: list[int] | None = Field(
        None, min_length=1, max_length=MAX_ALLOWED, description="The only tokens that may come. Include an end token."
    )
    bad_words: BadWordsField = Field(
        [], description="Texts whose tokens never come in a row, with and without a space before them."
    )
    repetition_detection: RepetitionDetection | None = Field(
        None, description="End a choice that repeats itself, with `stop_reason` repetition."
    )
    skip_special_tokens: bool = Field(True, description="False: the text has the names of special tokens.")
    return_token_ids: bool = False
    cache_salt: str = Field("", max_length=256, description="Cached prefixes are shared only if salts are equal.")

    timings: bool = Field(False, description="Add `timings` to the usage: queue, prefill, decode, tokens per second.")
    explain: bool = Field(False, description="Add the events of the request, with times, to the response.")
    priority: int = Field(
        0, ge=-1000, le=1000, description="Among requests of one API key, lower numbers are scheduled first."
    )


MAX_LOGPROBS = 20


class StreamOptions(StrictModel):
    """Options of a stream."""

    known_fields: ClassVar[KnownFields] = STREAM_OPTIONS

    include_usage: bool = Field(False, description="Send a last chunk with the token usage.")
    continuous_usage_stats: bool = Field(False, description="Add the token usage so far to every chunk.")


class GenerationRequest(SamplingFields, StructuredOutputFields):
    """The common fields of completion and chat requests."""

    model: str
    n: int = Field(1, ge=1, le=128, description="Number of choices for each prompt.")
    stream: bool = False
    stream_options: StreamOptions | None = None

    temperature: float = Field(1.0, ge=0, le=2, description="0 selects the most probable token.")
    top_p: float = Field(1.0, ge=0, le=1)
    max_tokens: int | None = Field(None, ge=1)

    truncate_prompt_tokens: int | None = Field(
        None, ge=-1, description="Keep only this number of tokens at the end of each prompt. -1: all that fit."
    )
    prompt_logprobs: int | None = Field(
        None, ge=0, le=MAX_LOGPROBS, description="Number of alternatives for each prompt token. Cannot be streamed."
    )

    logprob_token_ids: list[int] = Field(
        [],
        max_length=128,
        description="Return the log-probabilities of these tokens as the first new one, in `token_id_logprobs`.",
    )

    @property
    def include_usage(self) -> bool:
        """Whether the stream ends with a chunk of usage."""
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def has_continuous_usage(self) -> bool:
        """Whether every chunk of the stream has the usage so far."""
        return self.stream_options is not None and self.stream_options.continuous_usage_stats

    @property
    def max_new_tokens(self) -> int | None:
        """The requested number of tokens."""
        return self.max_tokens

    @property
    def num_choices(self) -> int:
        """The number of choices to generate for each prompt."""
        return self.n

    @property
    @abstractmethod
    def num_logprobs(self) -> int | None:
        """The number of alternatives for each token; None: no log-probabilities."""

    @property
    def num_prompt_logprobs(self) -> int | None:
        """The number of alternatives for each prompt token; None: no log-probabilities."""
        return self.prompt_logprobs

    def warnings(self) -> list[str]:
        """Return a warning for each field of the request that has no effect."""
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
