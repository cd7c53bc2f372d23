"""Answer: what completions and chat have in common from the first token to the last byte."""

import itertools
import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from typing import Any, Protocol

import msgspec
from fastapi import Request, Response

from caravan.server.generation.context import RequestContext
from caravan.server.generation.generation import Generation, PromptJob, StopRule
from caravan.server.generation.request_grammar import RequestGrammar
from caravan.server.generation.served_model import ServedModel
from caravan.server.generation.stop_strings import StopStrings
from caravan.server.generation.text_stream import ShownPrompt, TextPiece
from caravan.server.http.disconnect import until_disconnect
from caravan.server.http.errors import as_api_error
from caravan.server.http.sse import DONE, KEEP_ALIVE, EventStream, event, within
from caravan.server.openai.chunks import ChunkShape, ChunkWriter
from caravan.server.openai.logprobs import prompt_logprobs
from caravan.server.openai.prompts import check_report, num_tokens_to_produce
from caravan.server.openai.protocol.generation_requests import ChatRequest, CompletionRequest
from caravan.server.openai.sampling_params import check_sampling, sampling_params

Pieces = list[tuple[int, TextPiece]]


class Shape(ChunkShape, Protocol):
    """How one of the two kinds of request writes its choices."""

    id_prefix: str
    object_name: str
    chunk_object_name: str

    def whole(self, index: int, choice: TextPiece) -> dict[str, Any]:
        """Return a finished choice."""


class GenerationResponse:
    """The answer to one request, as one JSON object or as a stream of chunks."""

    def __init__(
        self,
        served: ServedModel,
        request: CompletionRequest | ChatRequest,
        prompts: list[list[int]],
        shape: Shape,
        *,
        prompt_texts: list[list[str]] | None = None,
        grammar: RequestGrammar | None = None,
        context: RequestContext,
        arrived_at_seconds: float,
        warnings: Sequence[str] = (),
    ) -> None:
        """Submit the prompts to the engine; raises ApiError or EngineUnavailable before anything runs.

        `prompt_texts` are the characters of each token of each prompt, if the answer repeats them.
        """
        self._served = served
        self._request = request
        self._prompts = prompts
        self._shape = shape
        self._warnings = warnings  # beside those of the request itself
        self._has_tools = isinstance(request, ChatRequest) and bool(request.shown_tools)
        self._id = shape.id_prefix + uuid.uuid4().hex
        self._created = int(time.time())
        self._generation = start_generation(
            served,
            request,
            prompts,
            prompt_texts=prompt_texts,
            grammar=grammar,
            context=context,
            arrived_at_seconds=arrived_at_seconds,
            answer_id=self._id,
        )

    async def respond(self, request: Request) -> Response:
        """Return the HTTP answer; if the client goes away, the engine stops working on it.

        Nothing is sent before the engine's first output, so that it may still be an error; but a stream that would be
        silent for longer than `keep_alive_seconds` begins with a comment, since proxies cut silent connections.
        """
        is_handed_over = False
        limits = self._served.limits
        try:
            if not self._request.stream:
                choices = await until_disconnect(request.receive, self._generation.whole_choices())
                return Response(msgspec.json.encode(self._whole(choices)), media_type="application/json")
            pieces = within(limits.keep_alive_seconds, self._generation.next_pieces())
            first = await until_disconnect(request.receive, pieces)
            is_handed_over = True
            return EventStream(
                self._events(first),
                write_timeout_seconds=limits.write_timeout_seconds,
                keep_alive_seconds=limits.keep_alive_seconds,
                on_end=self._generation.end,
            )
        finally:
            if not is_handed_over:
                self._generation.end()

    def _whole(self, choices: list[TextPiece]) -> dict[str, Any]:
        if self._request.num_choices > self._request.n:
            choices = best_choices(choices, self._request.num_choices, self._request.n)
        written = [self._shape.whole(index, choice) for index, choice in enumerate(choices)]
        return {
            **self._head(self._shape.object_name),
            "choices": written,
            "usage": self._generation.usage(),
            **self._remarks(),
            **self._prompt_logprobs(choices[0]),
            **self._explanation(),
        }

    def _explanation(self) -> dict[str, Any]:
        return {"explanation": self._generation.story.written()} if self._request.explain else {}

    def _prompt_logprobs(self, choice: TextPiece) -> dict[str, Any]:
        """Return what a chat says of its prompt; completions, which may have several, say it in each choice."""
        num_alternatives = self._request.prompt_logprobs
        if num_alternatives is None or isinstance(self._request, CompletionRequest):
            return {}
        entries = prompt_logprobs(choice.prompt_entries, self._served.tokenizer, num_alternatives)
        return {"prompt_logprobs": entries}

    async def _events(self, pieces: Pieces) -> AsyncGenerator[bytes, None]:
        """Yield the events of a stream, one or several at once, beginning with those of `pieces`, or a comment.

        An error becomes an event, too, since the status is already sent.
        """
        head = self._head(self._shape.chunk_object_name)
        has_logprobs = self._request.num_logprobs is not None
        has_token_ids = self._request.return_token_ids
        writer = ChunkWriter(
            self._shape,
            head,
            first=self._remarks(),
            has_only_text=not (has_logprobs or has_token_ids or self._has_tools),
            has_token_ids=has_token_ids,
            usage=self._generation.usage_after if self._request.has_continuous_usage else None,
        )
        if not pieces:
            yield KEEP_ALIVE
        try:
            while True:
                events = b"".join([writer.events(index, piece) for index, piece in pieces])
                if self._generation.is_finished:
                    break
                if events:
                    yield events
                pieces = await self._generation.next_pieces()
            if self._request.include_usage:
                events += event({**head, "choices": [], "usage": self._generation.usage()})
        except Exception as error:
            self._generation.end()  # so that its story has an end
            events = event(as_api_error(error).body())
        if self._request.explain:
            events += event({**head, "choices": [], **self._explanation()})
        yield events + DONE

    def _head(self, object_name: str) -> dict[str, Any]:
        return {"id": self._id, "object": object_name, "created": self._created, "model": self._request.model}

    def _remarks(self) -> dict[str, Any]:
        remarks: dict[str, Any] = {}
        warnings = [*self._request.warnings(), *self._warnings]
        if warnings:
            remarks["warnings"] = list(dict.fromkeys(warnings))
        if self._request.return_token_ids:
            remarks["prompt_token_ids"] = self._prompts if len(self._prompts) > 1 else self._prompts[0]
        return remarks


def start_generation(
    served: ServedModel,
    request: CompletionRequest | ChatRequest,
    prompts: list[list[int]],
    *,
    prompt_texts: list[list[str]] | None = None,
    grammar: RequestGrammar | None,
    context: RequestContext,
    arrived_at_seconds: float,
    answer_id: str,
) -> Generation:
    """Return the running generation of a request; raises ApiError or EngineUnavailable, and then nothing runs."""
    check_sampling(request, served.tokenizer.vocab_size)
    check_report(request, prompts)
    eos_token_ids, defaults = served.tokenizer.eos_token_ids, served.defaults
    jobs = []
    for prompt, texts in zip(prompts, prompt_texts or itertools.repeat(None), strict=False):
        max_tokens = num_tokens_to_produce(served, request, len(prompt))
        params = sampling_params(request, max_tokens, eos_token_ids, defaults)
        jobs.append(PromptJob(token_ids=prompt, params=params, shown=shown_prompt(request, prompt, texts)))
    stop = StopRule(
        strings=StopStrings(request.stop),
        include_match=request.include_stop_str_in_output,
        min_tokens=request.min_tokens,
    )
    return Generation(
        served,
        jobs,
        stop,
        arrived_at_seconds=arrived_at_seconds,
        grammar=grammar,
        context=context,
        answer_id=answer_id,
    )


def shown_prompt(
    request: CompletionRequest | ChatRequest, prompt: list[int], texts: list[str] | None
) -> ShownPrompt | None:
    """Return what the answer shows of a prompt, None if that is nothing."""
    has_logprobs = request.num_prompt_logprobs is not None
    if not has_logprobs and texts is None:
        return None
    return ShownPrompt(prompt, texts or [], has_logprobs)


def best_choices(choices: list[TextPiece], num_made: int, num_wanted: int) -> list[TextPiece]:
    """Return of each num_made choices of a prompt the num_wanted of the highest mean log-probability, best first."""

    def mean_logprob(choice: TextPiece) -> float:
        logprobs = [entry.logprobs.logprob for entry in choice.entries if entry.logprobs is not None]
        return sum(logprobs) / len(logprobs) if logprobs else 0.0  # the empty text is certain

    best: list[TextPiece] = []
    for start in range(0, len(choices), num_made):
        best += sorted(choices[start : start + num_made], key=mean_logprob, reverse=True)[:num_wanted]
    return best
