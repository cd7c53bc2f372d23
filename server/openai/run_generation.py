"""Run one generation to its end, whole or streamed, for every endpoint that generates."""

from collections.abc import AsyncGenerator, Callable
from typing import Any, Protocol

from fastapi import Request, Response
from starlette.types import Scope

from caravan.server.generation.cancellation import Cancellation
from caravan.server.generation.context import SCOPE_CANCELLATION, SCOPE_RECORD
from caravan.server.generation.generation import Generation
from caravan.server.generation.request_limits import RequestLimits
from caravan.server.generation.text_stream import TextDelta
from caravan.server.http.disconnect import until_disconnect
from caravan.server.http.errors import ApiError, as_api_error
from caravan.server.http.json_response import json_response
from caravan.server.http.sse import EVENTS, EventStream, within
from caravan.server.http.stream_form import StreamForm

Deltas = list[tuple[int, TextDelta]]


class EndpointWriter(Protocol):
    """Writes the response of one endpoint. Every method but `whole` returns events, perhaps none."""

    def begin(self) -> bytes:
        """Return the events before the first delta."""

    def delta(self, index: int, delta: TextDelta, generation: Generation) -> bytes:
        """Return the events of the next delta of choice `index`."""

    def end(self, generation: Generation) -> bytes:
        """Return the events after the last delta."""

    def fail(self, error: ApiError, generation: Generation) -> bytes:
        """Return the last events of a stream that failed."""

    def add(self, index: int, delta: TextDelta, generation: Generation) -> None:
        """Store the next delta of choice `index` for `whole`."""

    def whole(self, generation: Generation) -> Any:
        """Return the body of a response that is not streamed, after its last delta."""


async def read_whole(request: Request, generation: Generation, add: Callable[[int, TextDelta], None]) -> None:
    """Run a generation and call `add` with each choice index and delta; a client that disconnects cancels it.

    Raises EngineUnavailable, ClientDisconnect, RequestCancelled or the error that ended the generation.
    """

    async def read() -> None:
        while not generation.is_finished:
            for index, delta in await generation.next_deltas():
                add(index, delta)

    _begin(request.scope, generation)
    try:
        await generation.start()
        await until_disconnect(request.receive, read())
    finally:
        generation.end()


async def run_generation(
    request: Request,
    generation: Generation,
    writer: EndpointWriter,
    limits: RequestLimits,
    *,
    is_stream: bool,
    form: StreamForm = EVENTS,
) -> Response:
    """Start a generation and return its HTTP response; a client that disconnects cancels it.

    No header is sent before the engine's first output, so that an error before it has its own status. A stream that
    would be silent for longer than `keep_alive_seconds` starts without output, since proxies close silent connections.
    """
    if not is_stream:
        await read_whole(request, generation, lambda index, delta: writer.add(index, delta, generation))
        return json_response(writer.whole(generation))
    _begin(request.scope, generation)
    is_handed_over = False
    try:
        await generation.start()
        first = await until_disconnect(request.receive, within(limits.keep_alive_seconds, generation.next_deltas()))
        is_handed_over = True
        return EventStream(
            _events(generation, writer, first, form.keep_alive),
            write_timeout_seconds=limits.write_timeout_seconds,
            keep_alive_seconds=limits.keep_alive_seconds,
            on_end=generation.end,
            form=form,
        )
    finally:
        if not is_handed_over:
            generation.end()


def _begin(scope: Scope, generation: Generation) -> None:
    """Let the log of a request and its cancellation find its generation."""
    scope[SCOPE_RECORD] = generation.record
    cancellation: Cancellation | None = scope.get(SCOPE_CANCELLATION)
    if cancellation is not None:
        cancellation.begin(generation.cancel)


async def _events(
    generation: Generation, writer: EndpointWriter, deltas: Deltas, keep_alive: bytes
) -> AsyncGenerator[bytes, None]:
    """Yield the events of a stream, one or several at once, starting with those of `deltas`.

    An error becomes an event, since the status is already sent.
    """
    events = writer.begin()
    if not (deltas or events):
        events = keep_alive
    try:
        while True:
            events += b"".join([writer.delta(index, delta, generation) for index, delta in deltas])
            if generation.is_finished:
                break
            if events:
                yield events
                events = b""
            deltas = await generation.next_deltas()
        events += writer.end(generation)
    except Exception as error:
        generation.end()  # completes the record
        events += writer.fail(as_api_error(error), generation)
    yield events
