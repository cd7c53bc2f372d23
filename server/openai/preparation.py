"""Preparation: the prompts, the grammar and the generation of a validated request."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from starlette.types import Receive

from caravan.server.generation.context import RequestContext
from caravan.server.generation.generation import Generation, PromptJob, StopRule
from caravan.server.generation.request_grammar import RequestGrammar
from caravan.server.generation.served_model import ServedModel
from caravan.server.generation.stop_strings import StopStrings
from caravan.server.generation.text_stream import ShownPrompt
from caravan.server.http.disconnect import until_disconnect
from caravan.server.openai.prompts import (
    chat_prompt,
    check_report,
    completion_prompts,
    echoed_texts,
    num_tokens_to_produce,
)
from caravan.server.openai.protocol.chat import ChatRequest
from caravan.server.openai.protocol.completions import CompletionRequest
from caravan.server.openai.sampling_params import check_sampling, sampling_params
from caravan.server.openai.structured_output.constraint import checked_grammar


@dataclass(frozen=True)
class Prepared:
    """A request's prompts as token ids, the text of each token if the response echoes it, and the grammar."""

    prompts: list[list[int]]
    prompt_texts: list[list[str]] | None
    grammar: RequestGrammar | None


async def prepared_completion(
    served: ServedModel, request: CompletionRequest, key_name: str, receive: Receive
) -> Prepared:
    """Prepare a completion; raises ApiError, ClientDisconnect, ExecutorFull or WorkerUnavailable."""

    async def prepare() -> Prepared:
        prompts = await completion_prompts(served, request, key_name)
        grammar = await checked_grammar(served, request, key_name)
        return Prepared(prompts, await echoed_texts(served, request, prompts, key_name), grammar)

    return await until_disconnect(receive, prepare())


async def prepared_chat(served: ServedModel, request: ChatRequest, key_name: str, receive: Receive) -> Prepared:
    """Prepare a chat; raises ApiError, ClientDisconnect, ExecutorFull or WorkerUnavailable."""

    async def prepare() -> Prepared:
        prompt = await chat_prompt(served, request, key_name)
        return Prepared([prompt], None, await checked_grammar(served, request, key_name))

    return await until_disconnect(receive, prepare())


def generation_of(
    served: ServedModel,
    request: CompletionRequest | ChatRequest,
    prepared: Prepared,
    context: RequestContext,
    answer_id: str,
    grammar: RequestGrammar | None = None,
) -> Generation:
    """Return the generation of a request, not started yet; raises ApiError, QueueFull or DeadlineExceeded.

    `grammar` replaces the prepared one.
    """
    check_sampling(request, served.tokenizer.vocab_size)
    check_report(request, prepared.prompts)
    return Generation(
        served,
        _jobs(served, request, prepared.prompts, prepared.prompt_texts),
        context,
        answer_id=answer_id,
        stop=StopRule(
            strings=StopStrings(request.stop),
            include_match=request.include_stop_str_in_output,
            min_tokens=request.min_tokens,
        ),
        grammar=grammar or prepared.grammar,
    )


def _jobs(
    served: ServedModel,
    request: CompletionRequest | ChatRequest,
    prompts: list[list[int]],
    prompt_texts: Sequence[list[str]] | None,
) -> list[PromptJob]:
    jobs = []
    for prompt, texts in zip(prompts, prompt_texts or itertools.repeat(None), strict=False):
        max_tokens = num_tokens_to_produce(served, request, len(prompt))
        params = sampling_params(request, max_tokens, served.tokenizer.eos_token_ids, served.defaults)
        jobs.append(PromptJob(token_ids=prompt, params=params, shown=_shown_prompt(request, prompt, texts)))
    return jobs


def _shown_prompt(
    request: CompletionRequest | ChatRequest, prompt: list[int], texts: list[str] | None
) -> ShownPrompt | None:
    """Return the parts of a prompt that the response shows, or None."""
    has_logprobs = request.num_prompt_logprobs is not None
    if not has_logprobs and texts is None:
        return None
    return ShownPrompt(prompt, texts or [], has_logprobs)
