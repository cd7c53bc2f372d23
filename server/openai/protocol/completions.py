"""The request and response of POST /v1/completions."""

from typing import Annotated, Any, ClassVar, Literal, Self

import msgspec
from msgspec import UNSET, UnsetType
from pydantic import BeforeValidator, Field, model_validator

from caravan.server.http.errors import invalid
from caravan.server.observe.explanation import Explanation
from caravan.server.openai.protocol.fields import PromptField
from caravan.server.openai.protocol.generation_request import MAX_LOGPROBS, GenerationRequest
from caravan.server.openai.protocol.known_field import KnownFields
from caravan.server.openai.protocol.known_fields import COMPLETION
from caravan.server.openai.protocol.response_model import (
    CompletionLogprobs,
    Head,
    PromptLogprobs,
    ResponseModel,
    StopReason,
    Usage,
)


def _false_is_none(value: Any) -> Any:
    return None if value is False else value


_LogprobsInput = Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | Literal[False] | None


class CompletionRequest(GenerationRequest):
    """The body of POST /v1/completions."""

    known_fields: ClassVar[KnownFields] = COMPLETION

    prompt: PromptField
    add_special_tokens: bool = Field(
        True, description="Add the tokenizer's BOS and EOS tokens to texts. Token ids stay unchanged."
    )
    max_tokens: int | None = Field(
        None, ge=0, description="0 requires `echo`, `prompt_logprobs` or `logprob_token_ids`."
    )
    logprobs: Annotated[int | None, BeforeValidator(_false_is_none, _LogprobsInput)] = Field(
        None, ge=0, le=MAX_LOGPROBS, description="Number of alternatives for each token; false: no log-probabilities."
    )
    best_of: int | None = Field(
        None, ge=1, le=128, description="Number of choices to generate, of which the `n` most probable are returned."
    )
    echo: bool = Field(False, description="Return the prompt before the generated text.")

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
        if self.max_tokens == 0 and not self.echo and self.prompt_logprobs is None and not self.logprob_token_ids:
            raise invalid(
                "`max_tokens` is 0; it must be at least 1 without `echo`, `prompt_logprobs` or `logprob_token_ids`.",
                "max_tokens",
            )
        return self

    @model_validator(mode="after")
    def _best_of_is_at_least_n(self) -> Self:
        if self.num_choices < self.n:
            raise invalid(f"`best_of` is {self.best_of}; it must be at least `n`, which is {self.n}.", "best_of")
        if self.stream and self.num_choices > self.n:
            raise invalid(
                "`best_of` above `n` cannot be streamed: choices are ranked when all are complete.", "best_of"
            )
        return self


_TOKEN_IDS = {"type": "array", "items": {"type": "integer"}}
# A list of token ids, or of such lists if there are several prompts.
PromptTokenIds = Annotated[
    list[Any], msgspec.Meta(extra_json_schema={"items": {"anyOf": [{"type": "integer"}, _TOKEN_IDS]}})
]


class CompletionChoice(ResponseModel, kw_only=True):
    """A continuation of a prompt, or a part of one."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Literal["stop", "length"] | None  # null: more follows
    stop_reason: StopReason | UnsetType = UNSET
    token_ids: list[int] | UnsetType = UNSET
    prompt_logprobs: PromptLogprobs | UnsetType = UNSET
    token_id_logprobs: dict[str, float] | UnsetType = UNSET  # of the first new token, by token id


class Completion(Head, kw_only=True):
    """The response of POST /v1/completions, whole; its chunks have the same form."""

    choices: list[CompletionChoice]
    usage: Usage | UnsetType = UNSET
    warnings: list[str] | UnsetType = UNSET
    prompt_token_ids: PromptTokenIds | UnsetType = UNSET
    explanation: Explanation | UnsetType = UNSET
