"""PromptJob: a prompt for the engine, made from the arguments of a call of LLM."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from pydantic import ValidationError

from caravan.model.sampling.sampling_params import SamplingParams as EngineParams
from caravan.offline.results import Message, Prompt, TemplateValue
from caravan.offline.sampling_params import SamplingParams, problem_of
from caravan.server.generation.text_model import TextModel
from caravan.server.generation.thought_splitter import Thoughts
from caravan.server.http.errors import ApiError
from caravan.server.openai.chat_rendering import rendered_chat, thoughts_after
from caravan.server.openai.prompts import (
    DEFAULT_COMPLETION_TOKENS,
    chat_token_ids,
    encoded,
    num_tokens_within,
    prompt_token_ids,
)
from caravan.server.openai.protocol.completions import CompletionRequest
from caravan.server.openai.protocol.messages import Conversation
from caravan.server.openai.protocol.strict_model import ignored_fields, ignored_warnings
from caravan.server.openai.sampling_params import check_sampling, sampling_params
from caravan.server.openai.template_messages import message_warnings

Params = SamplingParams | Sequence[SamplingParams] | None


@dataclass(frozen=True, kw_only=True)
class PromptJob:
    """One prompt with the parameters of each of its choices."""

    prompt: Prompt | Sequence[Message]  # as it was given
    token_ids: list[int]
    params: list[EngineParams]
    request: CompletionRequest  # what they were made of
    thoughts: Thoughts | None = None  # of the model of a chat


def prompt_jobs(
    model: TextModel, prompts: Prompt | Sequence[Prompt], sampling_params: Params, name: str = "prompts"
) -> list[PromptJob]:
    """Return the jobs of one prompt or of several, in their order; raises ValueError, which names the argument."""
    several = _several_prompts(prompts, name)
    params = _params_of_each(sampling_params, len(several))
    jobs = []
    for index, prompt in enumerate(several):
        place = name if len(several) == 1 else f"{name}[{index}]"
        with _value_errors(place):
            text = prompt if isinstance(prompt, str) else list(prompt)
            (token_ids,) = prompt_token_ids(model, [text], place, add_special_tokens=True)
            jobs.append(_job(model, prompt, token_ids, params[index], DEFAULT_COMPLETION_TOKENS))
    return jobs


def chat_jobs(
    model: TextModel,
    messages: Sequence[Message] | Sequence[Sequence[Message]],
    sampling_params: Params,
    template_kwargs: Mapping[str, TemplateValue] | None = None,
) -> list[PromptJob]:
    """Return the jobs of one conversation or of several, in their order; raises ValueError."""
    if model.chat_template is None:
        raise ValueError("`messages` need a chat template, and this model has none: give `chat_template`, or a prompt.")
    conversations = _conversations(messages)
    params = _params_of_each(sampling_params, len(conversations))
    jobs = []
    for index, conversation in enumerate(conversations):
        with _value_errors("messages" if len(conversations) == 1 else f"messages[{index}]"):
            token_ids, thoughts = _read_chat(model, conversation, template_kwargs)
            jobs.append(_job(model, conversation, token_ids, params[index], None, thoughts))
    return jobs


def _read_chat(
    model: TextModel, messages: Sequence[Message], template_kwargs: Mapping[str, TemplateValue] | None
) -> tuple[list[int], Thoughts | None]:
    """Return the token ids of a conversation, and how the answer to it begins."""
    body: dict[str, object] = {"messages": [dict(one) if isinstance(one, Mapping) else one for one in messages]}
    if template_kwargs is not None:
        is_mapping = isinstance(template_kwargs, Mapping)
        body["chat_template_kwargs"] = dict(template_kwargs) if is_mapping else template_kwargs
    try:
        conversation = Conversation.model_validate(body)
    except ValidationError as error:
        raise problem_of(error, body) from None
    for text in (*ignored_warnings(ignored_fields(conversation)), *message_warnings(model, conversation)):
        warnings.warn(text, stacklevel=4)  # the caller of LLM.chat
    rendered = rendered_chat(model, conversation)
    max_tokens = model.max_model_len
    token_ids = encoded(
        model, rendered.text, "messages", max_tokens, parse_special=True, guard=rendered.guard, is_open=True
    )
    return chat_token_ids(model, token_ids), thoughts_after(model, conversation, rendered.text)


def _job(
    model: TextModel,
    prompt: Prompt | Sequence[Message],
    token_ids: list[int],
    params: SamplingParams,
    default_max_tokens: int | None,
    thoughts: Thoughts | None = None,
) -> PromptJob:
    request = params.request
    check_sampling(request, model.tokenizer.vocab_size)
    max_tokens = num_tokens_within(model, request.max_new_tokens, len(token_ids), default_max_tokens)
    each = sampling_params(request, max_tokens, model.tokenizer, model.defaults)
    return PromptJob(prompt=prompt, token_ids=token_ids, params=each, request=request, thoughts=thoughts)


def _conversations(messages: Sequence[Message] | Sequence[Sequence[Message]]) -> list[Sequence[Message]]:
    """Return one conversation or several as a list of them; an empty list is no conversation."""
    if isinstance(messages, list | tuple):
        if messages and all(isinstance(one, Mapping) for one in messages):
            return [messages]
        if all(isinstance(one, list | tuple) for one in messages):
            return list(messages)
    raise ValueError("`messages` must be a list of messages, or a list of such lists.")


def _several_prompts(prompts: Prompt | Sequence[Prompt], name: str) -> Sequence[Prompt]:
    """Return one prompt or several as a list of prompts; an empty list is no prompt."""
    if isinstance(prompts, str):
        return [prompts]
    if isinstance(prompts, Sequence):
        if prompts and _is_token_ids(prompts):
            return [prompts]  # type: ignore[list-item]  # all of them are integers
        if all(isinstance(one, str) or (isinstance(one, Sequence) and _is_token_ids(one)) for one in prompts):
            return prompts  # type: ignore[return-value]  # each was looked at
    raise ValueError(f"`{name}` must be a text, a list of token ids, or a list of texts and such lists.")


def _is_token_ids(value: Sequence[object]) -> bool:
    return not isinstance(value, bytes | bytearray) and all(type(item) is int for item in value)


def _params_of_each(sampling_params: Params, num_prompts: int) -> Sequence[SamplingParams]:
    """Return the parameters of each prompt: one for all, or a list of as many as there are prompts."""
    if sampling_params is None or isinstance(sampling_params, SamplingParams):
        return [sampling_params or SamplingParams()] * num_prompts
    if not isinstance(sampling_params, Sequence) or not all(isinstance(one, SamplingParams) for one in sampling_params):
        raise ValueError("`sampling_params` must be SamplingParams, or a list of them.")
    if len(sampling_params) != num_prompts:
        raise ValueError(f"`sampling_params` has {len(sampling_params)} items for {num_prompts} prompts.")
    return sampling_params


@contextmanager
def _value_errors(place: str) -> Iterator[None]:
    """Make the errors of a request ValueErrors that name the argument `place`."""
    try:
        yield
    except ApiError as error:
        is_named = error.message.startswith(f"`{place}") or f"in `{place}`" in error.message
        raise ValueError(error.message if is_named else f"`{place}`: {error.message}") from None
    except UnicodeEncodeError:
        raise ValueError(f"`{place}` cannot be encoded: it has half of a surrogate pair.") from None
