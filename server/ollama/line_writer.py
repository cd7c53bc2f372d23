"""LineWriter: the response to one chat or completion as one object, or as lines of JSON."""

import time
import uuid
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from msgspec import UNSET

from caravan.model.tokenizer.tokenizer import Tokenizer
from caravan.server.generation.generation import Generation
from caravan.server.generation.text_stream import TextDelta, join_deltas
from caravan.server.http.errors import ApiError
from caravan.server.http.stream_form import StreamForm
from caravan.server.ollama.answers import Answer, AnswerCall, DoneReason
from caravan.server.ollama.call_reading import CallReading
from caravan.server.ollama.error_form import ollama_error
from caravan.server.ollama.json_line import json_line
from caravan.server.openai.logprobs import chat_logprobs
from caravan.server.openai.protocol.response_model import ChosenTokenLogprob

NANOSECONDS = 1_000_000_000
_LEAST = 1  # nanoseconds of the generation of one token: clients divide by them


class Part(NamedTuple):
    """What a line shows of a response."""

    content: str = ""
    thought: str = ""
    calls: Sequence[AnswerCall] = ()


MakeAnswer = Callable[[Part], Answer]  # the answer of an endpoint that has this part, without its common fields


class LineWriter:
    """Writes one response. Its last line has no text but the counts, the durations and the warnings."""

    def __init__(
        self,
        make: MakeAnswer,
        tokenizer: Tokenizer,
        calls: CallReading | None,
        warnings: Sequence[str],
        arrived_at_seconds: float,
        *,
        has_logprobs: bool,
        explain: bool,
    ) -> None:
        """Without `calls` all text is content. `arrived_at_seconds` is a time of time.monotonic()."""
        self.answer_id = f"ollama-{uuid.uuid4().hex}"
        self._make = make
        self._tokenizer = tokenizer
        self._calls = calls
        self._warnings = list(dict.fromkeys(warnings))
        self._arrived_at_seconds = arrived_at_seconds
        self._has_logprobs = has_logprobs
        self._explain = explain
        self._done_reason: DoneReason = "stop"
        self._deltas: list[TextDelta] = []  # of a response that is not streamed

    @property
    def form(self) -> StreamForm:
        """The form of the stream; a line without text keeps it open."""
        return StreamForm("application/x-ndjson", json_line(self._make(Part())))

    def begin(self) -> bytes:
        """Return no line: the first delta is the first line."""
        return b""

    def delta(self, index: int, delta: TextDelta, generation: Generation) -> bytes:  # noqa: ARG002  # of EndpointWriter
        """Return the line of the next delta, perhaps none."""
        part, logprobs = self._read(delta)
        if not (part.content or part.thought or part.calls or logprobs):
            return b""
        answer = self._make(part)
        if logprobs:
            answer.logprobs = logprobs
        return json_line(answer)

    def end(self, generation: Generation) -> bytes:
        """Return the last line."""
        return json_line(self._finished(Part(), generation))

    def fail(self, error: ApiError, generation: Generation) -> bytes:  # noqa: ARG002  # of EndpointWriter
        """Return the last line of a stream that failed."""
        return json_line(ollama_error(error))

    def add(self, index: int, delta: TextDelta, generation: Generation) -> None:  # noqa: ARG002  # of EndpointWriter
        """Store the next delta for `whole`."""
        self._deltas.append(delta)

    def whole(self, generation: Generation) -> Answer:
        """Return the response as one object."""
        part, logprobs = self._read(join_deltas(self._deltas))
        answer = self._finished(part, generation)
        if self._has_logprobs:
            answer.logprobs = logprobs
        return answer

    def loaded(self, generation: Generation) -> Answer:
        """Return the response to a request without a prompt, whose generation has ended."""
        self._done_reason = "load"
        answer = self._finished(Part(), generation)
        answer.load_duration = answer.total_duration
        answer.prompt_eval_count = answer.prompt_eval_duration = answer.eval_count = answer.eval_duration = UNSET
        return answer

    def _read(self, delta: TextDelta) -> tuple[Part, list[ChosenTokenLogprob]]:
        if delta.finish_reason is not None:
            self._done_reason = delta.finish_reason
        content, calls = delta.text, list[AnswerCall]()
        if self._calls is not None:
            content, calls = self._calls.push(delta.text, delta.finish_reason)
        logprobs: list[ChosenTokenLogprob] = []
        if self._has_logprobs:
            logprobs = chat_logprobs([*delta.thought_entries, *delta.entries], self._tokenizer)
        return Part(content, delta.thought, calls), logprobs

    def _finished(self, part: Part, generation: Generation) -> Answer:
        answer = self._make(part)
        usage, timings = generation.usage(), generation.record.timings()
        answer.done, answer.done_reason = True, self._done_reason
        answer.total_duration = nanoseconds_since(self._arrived_at_seconds)
        answer.load_duration = of_milliseconds(timings["queue_ms"])
        answer.prompt_eval_count = usage["prompt_tokens"]
        answer.prompt_eval_duration = of_milliseconds(timings["prefill_ms"])
        answer.eval_count = usage["completion_tokens"]
        answer.eval_duration = max(of_milliseconds(timings["decode_ms"]), _LEAST)
        answer.warnings = self._warnings or UNSET
        answer.explanation = generation.record.explanation() if self._explain else UNSET
        return answer


def now() -> datetime:
    """Return the time of a line."""
    return datetime.now(UTC)


def nanoseconds_since(seconds: float) -> int:
    """Return the nanoseconds since a time of time.monotonic()."""
    return round(NANOSECONDS * (time.monotonic() - seconds))


def of_milliseconds(milliseconds: float) -> int:
    """Return a duration in nanoseconds."""
    return round(milliseconds * 1_000_000)
