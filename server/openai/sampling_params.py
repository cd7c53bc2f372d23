"""The SamplingParams of each choice of a request."""

import hashlib
import secrets
from collections.abc import Sequence
from dataclasses import fields, replace

import msgspec

from caravan.model.sampling.generation_defaults import GenerationDefaults
from caravan.model.sampling.sampling_params import SamplingParams
from caravan.model.tokenizer.tokenizer import Tokenizer, Unencodable
from caravan.server.http.errors import invalid
from caravan.server.openai.prompts import check_token_ids
from caravan.server.openai.protocol.generation_request import GenerationRequest

_LEAST_TOP_P = 1e-9


def check_sampling(request: GenerationRequest, vocab_size: int) -> None:
    """Raise ApiError for a token id that the vocabulary lacks."""
    check_token_ids(request.stop_token_ids, vocab_size, "stop_token_ids")
    check_token_ids(list(request.logit_bias), vocab_size, "logit_bias")
    check_token_ids(request.logprob_token_ids, vocab_size, "logprob_token_ids")
    check_token_ids(request.allowed_token_ids or [], vocab_size, "allowed_token_ids")


def bad_word_ids(tokenizer: Tokenizer, words: Sequence[str]) -> tuple[tuple[int, ...], ...]:
    """Return the tokens of each word, with and without a space before it; raises ApiError for one without tokens."""
    found: dict[tuple[int, ...], None] = {}
    for word in words:
        for text in (word.lstrip(), f" {word.lstrip()}"):
            try:
                token_ids = tokenizer.encode(text, add_special_tokens=False)
            except Unencodable as error:
                raise invalid(f"`bad_words` cannot be encoded: {error}", "bad_words") from None
            found[tuple(token_ids)] = None
    return tuple(found)


def sampling_params(
    request: GenerationRequest, max_tokens: int, tokenizer: Tokenizer, defaults: GenerationDefaults
) -> list[SamplingParams]:
    """Return one SamplingParams for each choice of one prompt; only their seeds differ.

    Fields that the request leaves out have the model's default values. The model's end tokens are stop tokens unless
    the request sets `ignore_eos`.

    Raises ApiError if `max_tokens`, the limit for this prompt, is less than the request's `min_tokens`.
    """
    if request.min_tokens > max_tokens:
        raise invalid(f"`min_tokens` is {request.min_tokens}; it must be at most {max_tokens} here.", "min_tokens")
    stop_token_ids = {*request.stop_token_ids, *(() if request.ignore_eos else tokenizer.eos_token_ids)}
    given = {field.name for field in fields(defaults)} & request.model_fields_set
    chosen = replace(defaults, **{name: getattr(request, name) for name in given})
    params = SamplingParams(
        seed=0,
        max_tokens=max_tokens,
        min_tokens=request.min_tokens,
        temperature=chosen.temperature,
        top_k=max(0, chosen.top_k),
        top_p=max(_LEAST_TOP_P, chosen.top_p),  # 0 leaves only the most probable token
        min_p=chosen.min_p,
        presence_penalty=request.presence_penalty,
        frequency_penalty=request.frequency_penalty,
        repetition_penalty=chosen.repetition_penalty,
        logit_bias=request.logit_bias,
        bad_words=bad_word_ids(tokenizer, request.bad_words),
        allowed_token_ids=tuple(sorted({*(request.allowed_token_ids or ())})),
        repetition=None if request.repetition_detection is None else request.repetition_detection.rule(),
        stop_token_ids=tuple(sorted(stop_token_ids)),
        num_logprobs=request.num_logprobs,
        num_prompt_logprobs=request.num_prompt_logprobs,
        logprob_token_ids=tuple(request.logprob_token_ids),
    )
    if request.num_choices > request.n and params.num_logprobs is None:
        params = msgspec.structs.replace(params, num_logprobs=0)  # to rank the choices
    seeds = [choice_seed(request.seed, index) for index in range(request.num_choices)]
    return [msgspec.structs.replace(params, seed=seed) for seed in seeds]


def choice_seed(seed: int | None, index: int) -> int:
    """Return the seed of choice `index` of a prompt: random if `seed` is None or -1, else a hash of both numbers.

    The other prompts of a request have no influence on it.
    """
    if seed is None or seed == -1:
        return secrets.randbits(64)
    digest = hashlib.sha256(f"{seed} {index}".encode()).digest()
    return int.from_bytes(digest[:8], "big")
