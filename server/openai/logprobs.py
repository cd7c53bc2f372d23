"""Log-probabilities in the formats of completions, chats and prompts."""

from collections.abc import Sequence

from caravan.model.tokenizer.tokenizer import Tokenizer
from caravan.server.generation.text_stream import TokenEntry
from caravan.server.openai.protocol.response_model import (
    ChosenTokenLogprob,
    CompletionLogprobs,
    PromptLogprob,
    PromptLogprobs,
    TokenLogprob,
)

_LOWEST = -9999.0  # stands for minus infinity, which JSON does not have


def prompt_logprobs(entries: list[TokenEntry], tokenizer: Tokenizer, num_alternatives: int) -> PromptLogprobs:
    """Return an object of token ids and their log-probabilities for each token of a prompt.

    It has the token itself and the `num_alternatives` most probable ones; the first token has None.
    """
    written: PromptLogprobs = []
    for entry in entries:
        tokens = {
            str(token_id): PromptLogprob(logprob=_finite(logprob), decoded_token=_text_of(token_id, tokenizer))
            for token_id, logprob in _alternatives(entry, num_alternatives).items()
        }
        written.append(tokens or None)
    return written


def token_id_logprobs(token_ids: Sequence[int], logprobs: Sequence[float]) -> dict[str, float]:
    """Return the log-probability of each token id as the first new token."""
    return {str(token_id): _finite(logprob) for token_id, logprob in zip(token_ids, logprobs, strict=True)}


def chat_logprobs(entries: Sequence[TokenEntry], tokenizer: Tokenizer) -> list[ChosenTokenLogprob]:
    """Return the log-probabilities of a chat choice or chunk: an object for each token, with its true bytes."""
    content = []
    for entry in entries:
        assert entry.logprobs is not None, "only a prompt's first token has none"
        top = zip(entry.logprobs.top_token_ids, entry.logprobs.top_logprobs, strict=True)
        token = tokenizer.token_bytes(entry.token_id)
        item = ChosenTokenLogprob(
            token=token_text(token),
            logprob=_finite(entry.logprobs.logprob),
            bytes=list(token),
            top_logprobs=[_token_logprob(token_id, logprob, tokenizer) for token_id, logprob in top],
        )
        content.append(item)
    return content


def completion_logprobs(entries: list[TokenEntry], tokenizer: Tokenizer, num_alternatives: int) -> CompletionLogprobs:
    """Return the `logprobs` of a completion choice or chunk: parallel lists.

    An entry of `top_logprobs` has the `num_alternatives` most probable tokens and the chosen one.
    The first token of an echoed prompt has null in `token_logprobs` and `top_logprobs`.
    """
    top_logprobs: list[dict[str, float] | None] = []
    for entry in entries:
        named: dict[str, float] = {}  # of tokens with the same text the most probable one
        for token_id, logprob in _alternatives(entry, num_alternatives).items():
            named.setdefault(_text_of(token_id, tokenizer), _finite(logprob))
        top_logprobs.append(named or None)
    return CompletionLogprobs(
        tokens=[_text_of(entry.token_id, tokenizer) for entry in entries],
        token_logprobs=[None if entry.logprobs is None else _finite(entry.logprobs.logprob) for entry in entries],
        top_logprobs=top_logprobs,
        text_offset=[entry.text_offset for entry in entries],
    )


def token_text(token: bytes) -> str:
    r"""Return a token as text, or as `bytes:\xf0\x9f` if it is only a part of a character."""
    try:
        return token.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token)


def _alternatives(entry: TokenEntry, num: int) -> dict[int, float]:
    """Return the most probable tokens at an entry's position, and its own; none for a prompt's first token."""
    if entry.logprobs is None:
        return {}
    top = dict(zip(entry.logprobs.top_token_ids[:num], entry.logprobs.top_logprobs, strict=False))
    top.setdefault(entry.token_id, entry.logprobs.logprob)
    return top


def _text_of(token_id: int, tokenizer: Tokenizer) -> str:
    return token_text(tokenizer.token_bytes(token_id))


def _token_logprob(token_id: int, logprob: float, tokenizer: Tokenizer) -> TokenLogprob:
    token = tokenizer.token_bytes(token_id)
    return TokenLogprob(token=token_text(token), logprob=_finite(logprob), bytes=list(token))


def _finite(logprob: float) -> float:
    return logprob if logprob > _LOWEST else _LOWEST
