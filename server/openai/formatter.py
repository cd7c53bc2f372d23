"""Formatter: the common parts of completion and chat responses, whole and streamed."""

import time
import uuid
from collections.abc import Sequence
from typing import Any, Protocol

from caravan.server.generation.generation import Generation
from caravan.server.generation.text_stream import TextDelta, join_deltas
from caravan.server.http.errors import ApiError
from caravan.server.http.sse import DONE, event
from caravan.server.openai.protocol.chat import ChatRequest
from caravan.server.openai.protocol.completions import CompletionRequest
from caravan.server.openai.protocol.response_model import Head


class Shape(Protocol):
    """Writes the choices of one endpoint."""

    id_prefix: str

    def opening(self, index: int) -> Any | None:
        """Return the chunk of a choice that precedes its first text, or None."""

    def chunk(self, index: int, delta: TextDelta) -> Any | None:
        """Return a choice's part of one chunk, or None if it has none yet."""

    def chunk_body(self, head: dict[str, Any], choices: list[Any], fields: dict[str, Any]) -> Head:
        """Return a chunk."""

    def body(self, head: dict[str, Any], choices: list[TextDelta], fields: dict[str, Any]) -> Head:
        """Return a whole response."""


class Formatter:
    """Writes the response to one request, as one JSON object or as a stream of chunks."""

    def __init__(
        self,
        request: CompletionRequest | ChatRequest,
        prompts: list[list[int]],
        shape: Shape,
        warnings: Sequence[str] = (),
    ) -> None:
        """`warnings` follow those of the request itself."""
        self.answer_id = shape.id_prefix + uuid.uuid4().hex
        self._request = request
        self._shape = shape
        self._head: dict[str, Any] = {"id": self.answer_id, "created": int(time.time()), "model": request.model}
        self._remarks: dict[str, Any] = {}  # in the first chunk only
        all_warnings = [*request.warnings(), *warnings]
        if all_warnings:
            self._remarks["warnings"] = list(dict.fromkeys(all_warnings))
        if request.return_token_ids:
            self._remarks["prompt_token_ids"] = prompts if len(prompts) > 1 else prompts[0]
        self._has_usage = request.has_continuous_usage
        self._has_token_ids = request.return_token_ids
        self._plain_chunk: Any = shape.chunk_body(self._head, [], {})  # without further fields, as most chunks are
        self._deltas: dict[int, list[TextDelta]] = {}  # by choice, of a response that is not streamed
        self._opened: set[int] = set()
        self._num_tokens = 0  # of all choices so far
        self._num_thought_tokens = 0

    def begin(self) -> bytes:
        """Return no event: the first delta is the first event."""
        return b""

    def delta(self, index: int, delta: TextDelta, generation: Generation) -> bytes:
        """Return the events of the next delta of choice `index`, perhaps none."""
        if not self._opened:
            self._plain_chunk.system_fingerprint = self._head["system_fingerprint"] = generation.fingerprint
        fields: dict[str, Any] | None = None
        if self._has_usage:
            self._num_tokens += len(delta.token_ids)
            self._num_thought_tokens += delta.num_thought_tokens
            fields = {"usage": generation.usage_after(self._num_tokens, self._num_thought_tokens)}
        written = b""
        if index not in self._opened:
            self._opened.add(index)
            opening = self._shape.opening(index)
            if opening is not None:
                written = self._chunk(opening, fields)
        has_thought = delta.thought or delta.thought_entries
        has_more = has_thought or delta.token_logprobs or delta.finish_reason or self._has_token_ids
        if delta.text or delta.entries or has_more:
            choice = self._shape.chunk(index, delta)
            if choice is not None:
                written += self._chunk(choice, fields)
        return written

    def end(self, generation: Generation) -> bytes:
        """Return the events after the last delta."""
        events = b""
        if self._request.include_usage:
            events = event(self._shape.chunk_body(self._head, [], {"usage": generation.usage()}))
        return events + self._last(generation)

    def fail(self, error: ApiError, generation: Generation) -> bytes:
        """Return the last events of a stream that failed."""
        return event(error.body()) + self._last(generation)

    def add(self, index: int, delta: TextDelta, generation: Generation) -> None:  # noqa: ARG002  # of EndpointWriter
        """Store the next delta of choice `index` for `whole`."""
        self._deltas.setdefault(index, []).append(delta)

    def whole(self, generation: Generation) -> Head:
        """Return the response as one object."""
        self._head["system_fingerprint"] = generation.fingerprint
        choices = [join_deltas(self._deltas[index]) for index in sorted(self._deltas)]
        if self._request.num_choices > self._request.n:
            choices = best_choices(choices, self._request.num_choices, self._request.n)
        fields = {"usage": generation.usage(), **self._remarks, **self._explanation(generation)}
        return self._shape.body(self._head, choices, fields)

    def _chunk(self, choice: Any, fields: dict[str, Any] | None) -> bytes:
        if self._remarks:
            fields = (fields or {}) | self._remarks
            self._remarks = {}
        if fields is not None:
            return event(self._shape.chunk_body(self._head, [choice], fields))
        self._plain_chunk.choices = [choice]
        return event(self._plain_chunk)

    def _last(self, generation: Generation) -> bytes:
        if not self._request.explain:
            return DONE
        return event(self._shape.chunk_body(self._head, [], self._explanation(generation))) + DONE

    def _explanation(self, generation: Generation) -> dict[str, Any]:
        return {"explanation": generation.record.explanation()} if self._request.explain else {}


def best_choices(choices: list[TextDelta], num_made: int, num_wanted: int) -> list[TextDelta]:
    """Return the `num_wanted` best of each prompt's `num_made` choices by mean log-probability, best first."""

    def mean_logprob(choice: TextDelta) -> float:
        logprobs = [entry.logprobs.logprob for entry in choice.entries if entry.logprobs is not None]
        return sum(logprobs) / len(logprobs) if logprobs else 0.0  # the empty text is certain

    best: list[TextDelta] = []
    for start in range(0, len(choices), num_made):
        best += sorted(choices[start : start + num_made], key=mean_logprob, reverse=True)[:num_wanted]
    return best
