"""Log-probabilities in the two shapes OpenAI gave them."""

from typing import Any

from model.tokenizer import Tokenizer
from server.text_stream import TokenEntry

_LOWEST = -9999.0  # stands for minus infinity, which JSON does not have


def chat_logprobs(entries: list[TokenEntry], tokenizer: Tokenizer) -> dict[str, Any]:
    """Return the `logprobs` of a chat choice or chunk: one object for each token, with the token's true bytes."""
    content = []
    for entry in entries:
        top = zip(entry.logprobs.top_token_ids, entry.logprobs.top_logprobs, strict=True)
        item = _chat_token(entry.token_id, entry.logprobs.logprob, tokenizer)
        item["top_logprobs"] = [_chat_token(token_id, logprob, tokenizer) for token_id, logprob in top]
        content.append(item)
    return {"content": content, "refusal": None}


def completion_logprobs(entries: list[TokenEntry], tokenizer: Tokenizer) -> dict[str, Any]:
    """Return the `logprobs` of a completion choice or chunk: parallel lists.

    An entry of `top_logprobs` has the chosen token beside the most probable ones, so up to one more than asked for.
    """
    top_logprobs = []
    for entry in entries:
        top = dict(zip(entry.logprobs.top_token_ids, entry.logprobs.top_logprobs, strict=True))
        top.setdefault(entry.token_id, entry.logprobs.logprob)
        named: dict[str, float] = {}
        for token_id, logprob in top.items():  # two tokens may read alike; the more probable one comes first
            named.setdefault(token_text(tokenizer.token_bytes(token_id)), _finite(logprob))
        top_logprobs.append(named)
    return {
        "tokens": [token_text(tokenizer.token_bytes(entry.token_id)) for entry in entries],
        "token_logprobs": [_finite(entry.logprobs.logprob) for entry in entries],
        "top_logprobs": top_logprobs,
        "text_offset": [entry.text_offset for entry in entries],
    }


def token_text(token: bytes) -> str:
    r"""Return a token as text, or as `bytes:\xf0\x9f` if it is only a part of a character."""
    try:
        return token.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token)


def _chat_token(token_id: int, logprob: float, tokenizer: Tokenizer) -> dict[str, Any]:
    token = tokenizer.token_bytes(token_id)
    return {"token": token_text(token), "logprob": _finite(logprob), "bytes": list(token)}


def _finite(logprob: float) -> float:
    return logprob if logprob > _LOWEST else _LOWEST
