"""Preparation: the prompts, the grammar and the generation of a validated request."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from starlette.types import Receive

from caravan.scheduler.thought_budget import ThoughtBudget
from caravan.server.generation.context import RequestContext
from caravan.server.generation.generation import Generation, StopRule
from caravan.server.generation.prompt_job import PromptJob
from caravan.server.generation.request_grammar import RequestGrammar
from caravan.server.generation.served_model import ServedModel
from caravan.server.generation.stop_strings import StopStrings
from caravan.server.generation.text_stream import ShownPrompt
from caravan.server.generation.thought_splitter import Thoughts
from caravan.server.http.disconnect import until_disconnect
from caravan.server.openai.chat_rendering import render_chat, thoughts_after
from caravan.server.openai.prompts import (
    check_report,
    completion_prompts,
    echoed_texts,
    encode_chat,
    num_tokens_to_produce,
    truncated,
)
from caravan.server.openai.protocol.chat import ChatRequest
from caravan.server.openai.protocol.completions import CompletionRequest
from caravan.server.openai.sampling_params import check_sampling, sampling_params
from caravan.server.openai.structured_output.constraint import checked_grammar
from caravan.server.openai.thought_tokens import thought_budget
from caravan.server.openai.tool_calls.call_format import Arguments


@dataclass(frozen=True)
class Prepared:
    """A request's prompts as token ids, the text of each token if the response echoes it, and the grammar."""

    prompts: list[list[int]]
    prompt_texts: list[list[str]] | None
    grammar: RequestGrammar | None
    thoughts: Thoughts | None = None  # None: the model has none
    thought_budget: ThoughtBudget | None = None


async def prepared_completion(
    served: ServedModel, request: CompletionRequest, key_name: str, receive: Receive
) -> Prepared:
    """Prepare a completion; raises ApiError, ClientDisconnect, ExecutorFull or WorkerUnavailable."""

    async def prepare() -> Prepared:
        prompts = truncated(served, request, await completion_prompts(served, request, key_name))
        grammar = await checked_grammar(served, request, key_name)
        return Prepared(prompts, await echoed_texts(served, request, prompts, key_name), grammar)

    return await until_disconnect(receive, prepare())


async def prepared_chat(
    served: ServedModel,
    request: ChatRequest,
    key_name: str,
    receive: Receive,
    inputs: Mapping[str, Arguments] | None = None,
) -> Prepared:
    """Prepare a chat; raises ApiError, ClientDisconnect, ExecutorFull or WorkerUnavailable.

    `inputs`: see checked_grammar.
    """

    async def prepare() -> Prepared:
        rendered = await render_chat(served, request, key_name)
        (prompt,) = truncated(served, request, [await encode_chat(served, rendered, key_name)])
        thoughts = thoughts_after(served, request, rendered.text)
        grammar = await checked_grammar(served, request, key_name, thoughts, inputs)
        budget, max_tokens = None, request.thought_budget
        if max_tokens is not None and thoughts is not None:
            making = partial(thought_budget, served, thoughts, max_tokens.value)
            budget = await served.executors.tokenizing.run(key_name, making)
        return Prepared([prompt], None, grammar, thoughts, budget)

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
            # A required call is complete JSON, which they would cut.
            strings=StopStrings([] if isinstance(request, ChatRequest) and request.required_tools else request.stop),
            include_match=request.include_stop_str_in_output,
            min_tokens=request.min_tokens,
            skips_special_tokens=request.skip_special_tokens,
        ),
        grammar=grammar or prepared.grammar,
        thoughts=None if isinstance(request, ChatRequest) and request.has_raw_thoughts else prepared.thoughts,
        thought_budget=prepared.thought_budget,
        has_timings=request.timings,
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
        params = sampling_params(request, max_tokens, served.tokenizer, served.defaults)
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
