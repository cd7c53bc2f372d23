"""The response of POST /v1/completions."""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from caravan.server.observe.explanation import Explanation
from caravan.server.openai.protocol.answer import Answered, CompletionLogprobs, Head, PromptLogprobs, Usage

_TOKEN_IDS = {"type": "array", "items": {"type": "integer"}}
# A list of token ids, or of such lists if there are several prompts.
PromptTokenIds = Annotated[
    list[Any], msgspec.Meta(extra_json_schema={"items": {"anyOf": [{"type": "integer"}, _TOKEN_IDS]}})
]


class CompletionChoice(Answered, kw_only=True):
    """A continuation of a prompt, or a part of one."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Literal["stop", "length"] | None  # null: more follows
    token_ids: list[int] | UnsetType = UNSET
    prompt_logprobs: PromptLogprobs | UnsetType = UNSET


class Completion(Head, kw_only=True):
    """The response of POST /v1/completions, whole; its chunks have the same form."""

    choices: list[CompletionChoice]
    usage: Usage | UnsetType = UNSET
    warnings: list[str] | UnsetType = UNSET
    prompt_token_ids: PromptTokenIds | UnsetType = UNSET
    explanation: Explanation | UnsetType = UNSET
