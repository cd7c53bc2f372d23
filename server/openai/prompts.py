"""Prompts: the token ids of a request's texts and conversations."""

from collections.abc import Callable
from functools import partial
from typing import TypeVar

from caravan.server.generation.served_model import ServedModel
from caravan.server.generation.text_model import TextModel
from caravan.server.http.errors import ApiError, invalid
from caravan.server.openai.chat_rendering import render_chat
from caravan.server.openai.protocol.chat import ChatRequest
from caravan.server.openai.protocol.completions import CompletionRequest
from caravan.server.openai.protocol.messages import Conversation
from caravan.server.sandbox.chat_template import RenderedPrompt

_LONG_TEXT_CHARACTERS = 2000  # of all texts of a request; longer ones are tokenized in a thread
_PROBED_CHARACTERS_PER_TOKEN = 4  # of the longest prompt; that much of a long text is tokenized first
DEFAULT_COMPLETION_TOKENS = 16
_MANY_TOKENS = 10**15
_MAX_REPORTED = 400_000  # log-probabilities of prompts in one response, about 60 bytes each

T = TypeVar("T")


async def completion_prompts(served: ServedModel, request: CompletionRequest, key_name: str) -> list[list[int]]:
    """Return the token ids of each prompt of a completion; raises ApiError if they make too many choices."""
    num_choices = len(request.prompt) * request.num_choices
    if num_choices > served.limits.max_choices:
        raise invalid(
            f"{len(request.prompt)} prompts with n {request.n} make {num_choices} choices; "
            f"the limit is {served.limits.max_choices}.",
            "n" if request.num_choices == request.n else "best_of",
        )
    return await prompt_tokens(
        served, request.prompt, "prompt", key_name, add_special_tokens=request.add_special_tokens
    )


async def echoed_texts(
    served: ServedModel, request: CompletionRequest, prompts: list[list[int]], key_name: str
) -> list[list[str]] | None:
    """Return the text of each token of each prompt if the response echoes them, else None.

    Raises ApiError, before any decoding, if a prompt is too long for the model.
    """
    if not request.echo:
        return None
    for prompt in prompts:
        num_tokens_to_produce(served, request, len(prompt))
    length = sum(map(len, prompts))
    return await in_thread_if_long(
        served, key_name, length, lambda: [served.tokenizer.texts(prompt) for prompt in prompts]
    )


def check_report(request: CompletionRequest | ChatRequest, prompts: list[list[int]]) -> None:
    """Raise ApiError if the response would have too many log-probabilities of prompts."""
    if request.num_prompt_logprobs is None:
        return
    num_numbers = sum(map(len, prompts)) * request.num_choices * (request.num_prompt_logprobs + 1)
    if num_numbers > _MAX_REPORTED:
        raise invalid(
            f"The response would have {num_numbers} log-probabilities of prompts; the limit is {_MAX_REPORTED}. "
            "Request fewer choices or alternatives.",
            "prompt_logprobs" if request.prompt_logprobs is not None else "logprobs",
        )


async def prompt_tokens(
    served: ServedModel, texts: list[str | list[int]], name: str, key_name: str, *, add_special_tokens: bool = True
) -> list[list[int]]:
    """Return the token ids of each text of the field `name`: ids as they are, text with the model's BOS and EOS."""
    making = partial(prompt_token_ids, served, texts, name, add_special_tokens=add_special_tokens)
    return await in_thread_if_long(served, key_name, sum(map(len, texts)), making)


async def in_thread_if_long(served: ServedModel, key_name: str, length: int, call: Callable[[], T]) -> T:
    """Return the result of `call`, run in a thread if `length`, its number of characters or tokens, is large."""
    return call() if length < _LONG_TEXT_CHARACTERS else await served.executors.tokenizing.run(key_name, call)


def prompt_token_ids(
    model: TextModel, texts: list[str | list[int]], name: str, *, add_special_tokens: bool
) -> list[list[int]]:
    """Return token ids as `prompt_tokens` does, in the calling thread."""
    prompts = []
    for index, prompt in enumerate(texts):
        param = name if len(texts) == 1 else f"{name}[{index}]"
        if isinstance(prompt, str):
            token_ids = encoded(model, prompt, param, model.max_model_len, add_special_tokens=add_special_tokens)
        else:
            token_ids = prompt
            check_token_ids(token_ids, model.tokenizer.vocab_size, param)
        if not token_ids:
            raise invalid(f"`{param}` is empty; it must have at least one token.", param)
        prompts.append(token_ids)
    return prompts


async def chat_prompt(
    served: ServedModel, request: Conversation, key_name: str, max_tokens: int | None = None
) -> list[int]:
    """Return the token ids of the conversation as the model's chat template writes it; see `encode` for its limit."""
    return await encode_chat(served, await render_chat(served, request, key_name), key_name, max_tokens)


async def encode_chat(
    served: ServedModel, rendered: RenderedPrompt, key_name: str, max_tokens: int | None = None
) -> list[int]:
    """Return the token ids of a rendered conversation; see `encode` for its limit."""
    token_ids = await encode(
        served,
        rendered.text,
        "messages",
        key_name,
        parse_special=True,
        guard=rendered.guard,
        is_open=True,
        max_tokens=max_tokens,
    )
    return chat_token_ids(served, token_ids)


def chat_token_ids(model: TextModel, token_ids: list[int]) -> list[int]:
    """Return the tokens of an encoded conversation with one BOS only; raises ApiError if there are none."""
    bos = model.tokenizer.bos_token_id
    if bos is not None and token_ids[:2] == [bos, bos]:  # one from the template, one from the tokenizer
        del token_ids[0]
    if not token_ids:
        raise invalid("`messages` make an empty prompt; it must have at least one token.", "messages")
    return token_ids


def truncated(model: TextModel, request: CompletionRequest | ChatRequest, prompts: list[list[int]]) -> list[list[int]]:
    """Return the end of each prompt, as long as `truncate_prompt_tokens` says; raises ApiError for 0.

    -1 means all tokens that leave room for the requested output, at least one token.
    """
    limit = request.truncate_prompt_tokens
    if limit is None:
        return prompts
    if limit == -1:
        asked = DEFAULT_COMPLETION_TOKENS if isinstance(request, CompletionRequest) else 1
        wanted = asked if request.max_new_tokens is None else request.max_new_tokens
        limit = max(model.max_model_len - min(wanted, model.max_model_len), 1)
    elif not 1 <= limit <= model.max_model_len:
        raise invalid(
            f"`truncate_prompt_tokens` is {str(limit)[:24]}; it must be -1 or from 1 to {model.max_model_len}.",
            "truncate_prompt_tokens",
        )
    return [prompt[-limit:] for prompt in prompts]


def num_tokens_to_produce(model: TextModel, request: CompletionRequest | ChatRequest, num_prompt_tokens: int) -> int:
    """Return `max_tokens` of a choice: the requested number, or a default that fits.

    Raises ApiError if the prompt and the requested tokens exceed the model's context length.
    """
    default = None if isinstance(request, ChatRequest) else DEFAULT_COMPLETION_TOKENS
    return num_tokens_within(model, request.max_new_tokens, num_prompt_tokens, default)


def num_tokens_within(model: TextModel, asked: int | None, num_prompt_tokens: int, default: int | None) -> int:
    """Return `max_tokens` of a choice as `num_tokens_to_produce` does; the default None is all that fit."""
    room = model.max_model_len - num_prompt_tokens
    if asked is not None:
        asked = min(asked, _MANY_TOKENS)  # numbers of thousands of digits cannot be written in a message
    if asked is not None and asked > room:
        raise too_long(
            model, f"{num_prompt_tokens + asked} tokens ({num_prompt_tokens} in the prompt, {asked} in the completion)"
        )
    if room < 1 and asked != 0:
        raise too_long(model, f"{num_prompt_tokens} tokens in the prompt, which leaves no room for a completion")
    if asked is not None:
        return asked
    return room if default is None else min(room, default)


def check_token_ids(token_ids: list[int], vocab_size: int, param: str) -> None:
    """Raise ApiError unless all ids are in the vocabulary; the engine indexes tensors with them."""
    if not token_ids or (min(token_ids) >= 0 and max(token_ids) < vocab_size):
        return
    wrong = next(token_id for token_id in token_ids if not 0 <= token_id < vocab_size)
    raise invalid(f"`{param}` has the token id {str(wrong)[:24]}; it must be from 0 to {vocab_size - 1}.", param)


async def encode(
    served: ServedModel,
    text: str,
    param: str,
    key_name: str,
    *,
    add_special_tokens: bool = True,
    parse_special: bool = False,
    guard: str = "",
    is_open: bool = False,
    max_tokens: int | None = None,
) -> list[int]:
    """Return the token ids of a text, in a thread if it is long.

    Raises ApiError if it is far longer than `max_tokens`, by default the model's context length; a text that is only
    somewhat longer is encoded.
    """
    encoding = partial(
        encoded,
        served,
        text,
        param,
        served.max_model_len if max_tokens is None else max_tokens,
        add_special_tokens=add_special_tokens,
        parse_special=parse_special,
        guard=guard,
        is_open=is_open,
    )
    return await in_thread_if_long(served, key_name, len(text), encoding)


def encoded(
    model: TextModel,
    text: str,
    param: str,
    max_tokens: int,
    *,
    add_special_tokens: bool = True,
    parse_special: bool = False,
    guard: str = "",
    is_open: bool = False,
) -> list[int]:
    """Encode a text as `encode` does, in the calling thread.

    A text that is far too long is not tokenized as a whole, which would take seconds and hundreds of bytes for each
    token. Its beginning is tokenized first. The text after it can change only its last few tokens, so a beginning of
    more than twice `max_tokens` tokens shows that the text is too long.
    """
    encoding = partial(
        model.tokenizer.encode,
        add_special_tokens=add_special_tokens,
        parse_special=parse_special,
        guard=guard,
        is_open=is_open,
    )
    least = len(text.encode()) // model.max_token_bytes
    if least > max_tokens:
        raise too_long(model, f"at least {least} tokens in `{param}`", max_tokens)
    try:
        num_probed = _PROBED_CHARACTERS_PER_TOKEN * max_tokens
        while 2 * num_probed <= len(text):
            if len(encoding(text[:num_probed])) > 2 * max_tokens:
                raise too_long(model, f"more than {2 * max_tokens} tokens in `{param}`", max_tokens)
            num_probed *= 2
        return encoding(text)
    except ValueError as error:  # Unencodable
        raise invalid(f"`{param}` cannot be encoded: {error}", param) from None


def too_long(model: TextModel, requested: str, max_tokens: int | None = None) -> ApiError:
    """Return the error of a request that exceeds the model's context length, or another limit of tokens."""
    if max_tokens is not None and max_tokens != model.max_model_len:
        return ApiError(400, f"The limit is {max_tokens} tokens. However, you sent {requested}. Send a shorter text.")
    return ApiError(
        400,
        f"This model's maximum context length is {model.max_model_len} tokens. However, you requested {requested}. "
        "Shorten the prompt or request fewer tokens.",
        param=None,
        code="context_length_exceeded",
    )
