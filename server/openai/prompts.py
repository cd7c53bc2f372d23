"""From what a request says to the token ids the engine continues."""

import asyncio
import logging

from server.chat_template import TemplateFailed, TemplateRefused
from server.openai.errors import ApiError, invalid
from server.openai.schemas import ChatRequest, CompletionRequest
from server.served_model import ServedModel
from server.special_token_guard import Json

_LONG_TEXT_CHARACTERS = 2000  # encoded in a thread from here on, so that the event loop goes on
_DEFAULT_COMPLETION_TOKENS = 16

logger = logging.getLogger(__name__)


async def completion_prompts(served: ServedModel, request: CompletionRequest) -> list[list[int]]:
    """Return the token ids of each prompt; token ids are taken as they are, text gets the model's BOS token."""
    num_choices = len(request.prompt) * request.n
    if num_choices > served.limits.max_choices:
        raise invalid(
            f"{len(request.prompt)} prompts with n {request.n} make {num_choices} choices; "
            f"the limit is {served.limits.max_choices}.",
            "n",
        )
    prompts = []
    for index, prompt in enumerate(request.prompt):
        param = "prompt" if len(request.prompt) == 1 else f"prompt[{index}]"
        if isinstance(prompt, str):
            token_ids = await _encode(served, prompt, param)
        else:
            token_ids = prompt
            check_token_ids(token_ids, served.tokenizer.vocab_size, param)
        if not token_ids:
            raise invalid(f"`{param}` is empty; it must have at least one token.", param)
        prompts.append(token_ids)
    return prompts


async def chat_prompt(served: ServedModel, request: ChatRequest) -> list[int]:
    """Return the token ids of the conversation as the model's chat template writes it."""
    template = served.chat_template
    if template is None:
        raise invalid("This model has no chat template; use /v1/completions.", "messages")
    messages = [_for_template(message.model_dump(exclude_unset=True)) for message in request.messages]
    add_generation_prompt = request.add_generation_prompt
    if add_generation_prompt is None:
        add_generation_prompt = not request.continue_final_message
    try:
        rendered = await asyncio.to_thread(
            template.render,
            messages,
            special_tokens=served.tokenizer.special_tokens,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=request.continue_final_message,
        )
    except TemplateRefused as error:
        raise invalid(f"The model's chat template refuses these messages: {error}", "messages") from None
    except TemplateFailed as error:
        logger.error("The chat template failed: %s", ascii(str(error)))
        raise invalid("The model's chat template cannot be rendered for these messages.", "messages") from None
    except ValueError as error:  # no character is left for the guard
        raise invalid(str(error), "messages") from None
    token_ids = await _encode(served, rendered.text, "messages", parse_special=True, guard=rendered.guard)
    bos = served.tokenizer.bos_token_id
    if bos is not None and token_ids[:2] == [bos, bos]:  # one from the template, one from the tokenizer
        del token_ids[0]
    if not token_ids:
        raise invalid("`messages` make an empty prompt; it must have at least one token.", "messages")
    return token_ids


def num_tokens_to_produce(served: ServedModel, request: CompletionRequest | ChatRequest, num_prompt_tokens: int) -> int:
    """Return `max_tokens` of a choice: as asked for, or a default that fits.

    Raises ApiError if the prompt, or the prompt with the tokens asked for, is too long for the model.
    """
    room = served.max_model_len - num_prompt_tokens
    asked = request.max_new_tokens
    if asked is not None and asked > room:
        raise _too_long(
            served, f"{num_prompt_tokens + asked} tokens ({num_prompt_tokens} in the prompt, {asked} to come)"
        )
    if room < 1:
        raise _too_long(served, f"{num_prompt_tokens} tokens in the prompt, which leaves no room for an answer")
    if asked is not None:
        return asked
    return room if isinstance(request, ChatRequest) else min(room, _DEFAULT_COMPLETION_TOKENS)


def check_token_ids(token_ids: list[int], vocab_size: int, param: str) -> None:
    """Raise ApiError unless all ids are of the vocabulary: the engine indexes tensors with them."""
    for token_id in token_ids:
        if not 0 <= token_id < vocab_size:
            raise invalid(
                f"`{param}` has the token id {str(token_id)[:24]}; ids go from 0 to {vocab_size - 1}.",
                param,
            )


async def _encode(
    served: ServedModel, text: str, param: str, *, parse_special: bool = False, guard: str = ""
) -> list[int]:
    least = len(text.encode()) // served.max_token_bytes
    if least > served.max_model_len:  # not worth encoding
        raise _too_long(served, f"at least {least} tokens in `{param}`")
    try:
        if len(text) < _LONG_TEXT_CHARACTERS:
            return served.tokenizer.encode(text, parse_special=parse_special, guard=guard)
        return await asyncio.to_thread(served.tokenizer.encode, text, parse_special=parse_special, guard=guard)
    except ValueError as error:  # Unencodable
        raise invalid(f"`{param}` cannot be encoded: {error}", param) from None


def _too_long(served: ServedModel, requested: str) -> ApiError:
    return ApiError(
        400,
        f"This model's maximum context length is {served.max_model_len} tokens. However, you requested {requested}. "
        "Shorten the prompt or ask for fewer tokens.",
        param=None,
        code="context_length_exceeded",
    )


def _for_template(message: dict[str, Json]) -> dict[str, Json]:
    """Return what the template sees: what is set, with the role's older name."""
    if message["role"] == "developer":
        message["role"] = "system"
    return {name: value for name, value in message.items() if value not in (None, [])}
