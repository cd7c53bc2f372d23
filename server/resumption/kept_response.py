"""KeptResponse: one response, of which clients can read the latest events again."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from caravan.server.generation.cancellation import Cancellation
from caravan.server.generation.context import RESUME_HEADER, SCOPE_CANCELLATION, SCOPE_RECORD
from caravan.server.generation.errors import RequestCancelled
from caravan.server.generation.request_limits import RequestLimits
from caravan.server.http.asgi_cycle import SCOPE_WRITE_BODY
from caravan.server.http.sse import EventStream
from caravan.server.observe.request_record import RequestRecord

MAX_CHUNK_BYTES = 64 * 1024  # that a reader gets at once, or one event
_NO_COMMENTS_SECONDS = 1e9  # JSON lines have no comments, so nothing keeps their connections open
_SEPARATORS = {b"text/event-stream": b"\n\n", b"application/x-ndjson": b"\n"}

logger = logging.getLogger(__name__)


class ResponseEnded(Exception):
    """A response was ended before its last event, or its reader was too slow: the connection is closed."""


class KeptResponse:
    """The head and the latest events of one response, and what its readers wait for.

    Events are numbered from 1; those of an event stream have their number as `id`. A line of JSON counts as an event,
    and so does the body of any other response. Without a reader for `idle_seconds` the response ends and is dropped.
    """

    def __init__(
        self, scope: Scope, *, max_bytes: int, idle_seconds: float, on_drop: Callable[["KeptResponse"], None]
    ) -> None:
        """`scope` is that of the request, whose client is the first reader. `on_drop` is called once."""
        self.status = 0  # not known yet
        self.num_bytes = 0  # of kept events
        self.num_events = 0  # so far, those that are no longer kept included
        self.num_readers = 1
        self.is_body_read = False  # of the request
        self.is_complete = False  # the last event is there
        self.has_ended = False  # nothing follows, whether it is complete or not
        self.is_dropped = False
        self.queued_body = b""  # of an answer that was sent before the response began, if there was one
        self.queued_id = ""  # the response id in that answer
        self._scope = scope
        scope.pop(SCOPE_WRITE_BODY, None)  # all of the response passes through here
        self._cancellation = scope[SCOPE_CANCELLATION] = Cancellation()
        self._max_bytes = max_bytes
        self._idle_seconds = idle_seconds
        self._on_drop = on_drop
        self._headers: list[tuple[bytes, bytes]] = []
        self._separator: bytes | None = None  # between events; None: the body is one
        self._has_ids = False
        self._events: dict[int, bytes] = {}  # by number
        self._unsplit = b""  # the beginning of an event
        self._is_abandoned = asyncio.Event()  # cancelled or dropped
        self._waiters: list[asyncio.Future[None]] = []
        self._timer: asyncio.TimerHandle | None = None

    @property
    def record(self) -> RequestRecord | None:
        """The record of the request, once its generation has started."""
        record: RequestRecord | None = self._scope.get(SCOPE_RECORD)
        return record

    @property
    def response_id(self) -> str:
        """The response id that a client can know, empty if it can know none yet."""
        return self.queued_id or (self.record.response_id if self.record is not None else "")

    @property
    def is_cancelled(self) -> bool:
        """Whether another request has ended the response."""
        return self._cancellation.is_cancelled

    def is_of(self, scope: Scope) -> bool:
        """Return whether this is the response to the request with this scope."""
        return self._scope is scope

    @property
    def has_head(self) -> bool:
        """Whether the response can be sent: its status is known, and its body unless it has events."""
        return self.status > 0 and (self._separator is not None or self.is_complete)

    @property
    def num_dropped_events(self) -> int:
        """The number of events that were dropped to limit the memory; they are the first ones."""
        return self.num_events - len(self._events)

    @property
    def last_event(self) -> bytes:
        """The latest event, empty if there is none."""
        return self._events.get(self.num_events, b"")

    # The application writes

    async def produce(self, app: ASGIApp, receive: Receive) -> None:
        """Run the application for the request; it sees a disconnect when the response is dropped.

        When it is cancelled, `receive` raises RequestCancelled, unless there is a generation, which then ends.
        """

        async def receive_kept() -> Message:
            if not self.is_body_read:
                message = await receive()
                self.is_body_read = not message.get("more_body", False)
                self._wake()
                return message
            await self._is_abandoned.wait()
            if self.is_cancelled:
                raise RequestCancelled
            return {"type": "http.disconnect"}

        try:
            await app(self._scope, receive_kept, self._send)
        finally:
            self.has_ended = True
            self._wake()

    async def _send(self, message: Message) -> None:
        """Store a part of the response. It never waits: a slow reader does not slow down the application."""
        if message["type"] == "http.response.start":
            self.status, self._headers = message["status"], [*message.get("headers", ())]
            media_type = dict(self._headers).get(b"content-type", b"").partition(b";")[0].strip()
            self._separator = _SEPARATORS.get(media_type)
            self._has_ids = media_type == b"text/event-stream"
            if self.status < 400:
                self._headers.append((RESUME_HEADER, b"1"))
        else:
            self._unsplit += message.get("body", b"")
            is_last = not message.get("more_body", False)
            if self._separator is not None:
                *events, self._unsplit = self._unsplit.split(self._separator)
                for event in events:
                    self._add(event + self._separator)
            if is_last and self._unsplit:
                self._add(self._unsplit)
            self.is_complete = is_last
        self._wake()

    def _add(self, event: bytes) -> None:
        if self._has_ids and event.startswith(b":"):  # a comment; each connection has its own
            return
        self.num_events += 1
        if self._has_ids:
            event = b"id: %d\n%b" % (self.num_events, event)
        self._events[self.num_events] = event
        self.num_bytes += len(event)
        while self.num_bytes > self._max_bytes and len(self._events) > 1:  # the latest one stays while it is read
            self.num_bytes -= len(self._events.pop(self.num_dropped_events + 1))
        if self.num_bytes > self._max_bytes and not self.num_readers:
            self.drop()

    # Readers

    def attach(self) -> None:
        """Count a reader; call `detach` when it leaves."""
        self.num_readers += 1
        self._stop_timer()

    def detach(self) -> None:
        """Count a reader less; after the last one the time without readers begins."""
        self.num_readers -= 1
        if self.num_readers == 0 and not self.is_complete and self.record is not None and not self.queued_body:
            self.record.add_event("client disconnected", sent_events=self.num_events)
        self.touch()

    def touch(self) -> None:
        """Begin the time without readers again, if there are none; a body that is too large is not kept for them."""
        self._stop_timer()
        if self.num_readers == 0 and self.num_bytes > self._max_bytes:
            self.drop()
        elif self.num_readers == 0 and not self.is_dropped:
            self._timer = asyncio.get_running_loop().call_later(self._idle_seconds, self.drop)

    def cancel(self) -> None:
        """End the response if it runs, and keep what there is of it; its readers get its form's last event."""
        if not self.is_complete:
            self._cancellation.cancel()
            if not self._cancellation.has_generation:
                self._is_abandoned.set()

    def drop(self) -> None:
        """End the response; its readers get what there is of it. Only the first call has an effect."""
        if self.is_dropped:
            return
        self.is_dropped = True
        self._stop_timer()
        self._is_abandoned.set()
        self._wake()
        self._on_drop(self)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until `condition()` holds; it is checked at every change."""
        while not condition():
            await self._change()

    async def _change(self) -> None:
        """Wait until something has changed."""
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        await waiter

    def response(self, after: int, limits: RequestLimits, on_end: Callable[[], None]) -> Response:
        """Return the response after event `after`, once there is a head; `on_end` is called after its last byte."""
        if self._separator is None:
            response: Response = _WholeBody(self.last_event, on_end)
            response.status_code = self.status
        else:
            response = _KeptEvents(
                self._read(after),
                write_timeout_seconds=limits.write_timeout_seconds,
                keep_alive_seconds=limits.keep_alive_seconds if self._has_ids else _NO_COMMENTS_SECONDS,
                on_end=on_end,
            )
        response.raw_headers = [*self._headers]
        return response

    async def _read(self, after: int) -> AsyncGenerator[bytes, None]:
        """Yield the events after event `after`, several at once if there are."""
        while True:
            if after < self.num_dropped_events:
                raise ResponseEnded
            events, num_bytes = [], 0
            while after < self.num_events and num_bytes < MAX_CHUNK_BYTES:
                after += 1
                events.append(self._events[after])
                num_bytes += len(events[-1])
            if events:
                yield b"".join(events)
            elif self.is_complete:
                return
            elif self.has_ended or self.is_dropped:
                raise ResponseEnded
            else:
                await self._change()

    def _wake(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)


class _KeptEvents(EventStream):
    """A connection that reads the events of a response."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        except ResponseEnded:
            # Returning before the end of the body makes AsgiCycle close the connection.
            logger.debug("A response ended before all of its readers had its last event.")


class _WholeBody(Response):
    """A connection that reads a response without events."""

    def __init__(self, body: bytes, on_end: Callable[[], None]) -> None:
        super().__init__(body)
        self._on_end = on_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._on_end()
