"""The results of LLM: whole ones, and the deltas of a stream."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from caravan.model.tokenizer.tokenizer import Tokenizer
from caravan.server.generation.text_stream import TextDelta, TokenEntry
from caravan.server.openai.logprobs import token_text

Prompt = str | Sequence[int]  # a text, or token ids
Message = Mapping[str, Any]  # {"role": "user", "content": "..."}
TemplateValue = str | int | float | bool | None  # of a variable of the chat template
FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token with its log-probability under the model itself, before temperature and penalties."""

    token_id: int
    text: str  # a token that is a part of a character reads `bytes:\\xf0\\x9f`
    logprob: float
    top: tuple["TokenLogprob", ...] = ()  # the most probable tokens at this position, best first, as many as asked for


@dataclass(frozen=True, slots=True)
class Choice:
    """One continuation of a prompt."""

    index: int  # 0 to n - 1
    text: str
    reasoning: str  # what the model of a chat thought before the text; empty if it did not
    token_ids: tuple[int, ...]  # of both; a stop token at the end included, which has neither text nor log-probability
    finish_reason: FinishReason  # "stop": a stop token or string; "length": max_tokens or the context
    logprobs: tuple[TokenLogprob, ...] | None  # of each token, if asked for


@dataclass(frozen=True, slots=True)
class GenerationResult:
    """All choices of one prompt."""

    prompt: Prompt | Sequence[Message]  # as it was given
    prompt_token_ids: tuple[int, ...]
    choices: tuple[Choice, ...]
    num_cached_tokens: int  # prompt tokens found in the prefix cache
    prompt_logprobs: tuple[TokenLogprob | None, ...] | None  # of each prompt token, if asked for; None of the first one

    @property
    def text(self) -> str:
        """The text of the first choice."""
        return self.choices[0].text

    @property
    def reasoning(self) -> str:
        """The thought of the first choice, empty if there is none."""
        return self.choices[0].reasoning

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens of the prompt."""
        return len(self.prompt_token_ids)

    @property
    def num_completion_tokens(self) -> int:
        """Tokens of all choices."""
        return sum(len(choice.token_ids) for choice in self.choices)


@dataclass(frozen=True, slots=True)
class StreamDelta:
    """The output of a choice since its last delta. The deltas, joined in order, are the choice."""

    choice: int  # 0 to n - 1
    text: str  # empty while bytes wait for the rest of a character, or characters for that of a stop string
    reasoning: str  # before the text
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None  # with the last delta of the choice
    logprobs: tuple[TokenLogprob, ...] | None


def token_logprobs(entries: list[TokenEntry], tokenizer: Tokenizer) -> tuple[TokenLogprob | None, ...]:
    """Return the log-probabilities of tokens with their texts; None for the first token of a prompt."""
    return tuple(_token_logprob(entry, tokenizer) for entry in entries)


def choice_of(index: int, delta: TextDelta, tokenizer: Tokenizer, *, has_logprobs: bool) -> Choice:
    """Return a whole choice."""
    assert delta.finish_reason is not None, "the choice has ended"
    logprobs = _logprobs(delta, tokenizer) if has_logprobs else None
    return Choice(index, delta.text, delta.thought, tuple(delta.token_ids), delta.finish_reason, logprobs)


def delta_of(index: int, delta: TextDelta, tokenizer: Tokenizer, *, has_logprobs: bool) -> StreamDelta:
    """Return a part of a choice."""
    logprobs = _logprobs(delta, tokenizer) if has_logprobs else None
    return StreamDelta(index, delta.text, delta.thought, tuple(delta.token_ids), delta.finish_reason, logprobs)


def _logprobs(delta: TextDelta, tokenizer: Tokenizer) -> tuple[TokenLogprob, ...]:
    entries = [*delta.thought_entries, *delta.entries]
    return tuple(one for one in token_logprobs(entries, tokenizer) if one is not None)


def _token_logprob(entry: TokenEntry, tokenizer: Tokenizer) -> TokenLogprob | None:
    if entry.logprobs is None:
        return None

    def named(token_id: int, logprob: float, *top: TokenLogprob) -> TokenLogprob:
        return TokenLogprob(token_id, token_text(tokenizer.token_bytes(token_id)), logprob, top)

    top = map(named, entry.logprobs.top_token_ids, entry.logprobs.top_logprobs)
    return named(entry.token_id, entry.logprobs.logprob, *top)
