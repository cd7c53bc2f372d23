"""HttpProtocol: the asyncio protocol of one HTTP/1.1 connection.

It replaces uvicorn's protocols, which lose the body of a request that offers an upgrade, drop the response of a client
that half-closes, and limit neither the size nor the time of a request head.
"""

import asyncio
import contextvars
import logging
import socket
import struct
import urllib.parse
from typing import Any, Final, cast

import uvicorn
from uvicorn.protocols.utils import get_local_addr, get_remote_addr, is_ssl
from uvicorn.server import ServerState

from caravan.server.http.asgi_cycle import AsgiCycle
from caravan.server.http.errors import ApiError
from caravan.server.http.framing import FramingError, RequestHead, RequestReader
from caravan.server.http.half_close import HalfClose
from caravan.server.http.send_timeout import SendTimeout

HEAD_SECONDS: Final = 10.0  # for a head, from the connection or the first byte of a later head
FLUSH_SECONDS: Final = 30.0  # without progress on a closing connection, before it is aborted
STALL_SECONDS: Final = 60.0  # without progress on any other; streams have a shorter timeout
LINGER_SECONDS: Final = 5.0  # for the client to read a response that was sent before the end of its request
MAX_LINGER_BYTES: Final = 16 * 2**20  # of that request that are read and dropped
MAX_BUFFER_BYTES: Final = 64 * 1024  # of received data, above which reading is paused

logger = logging.getLogger(__name__)


class HttpProtocol(asyncio.Protocol):
    """Handles one request at a time: the next one is read when the response is complete.

    A client that half-closes the connection after its request gets the response, except with TLS, where Python's
    transports close both halves.
    """

    head_seconds = HEAD_SECONDS
    flush_seconds = FLUSH_SECONDS
    stall_seconds = STALL_SECONDS

    def __init__(
        self,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        """The arguments are those of uvicorn's protocols."""
        if not config.loaded:
            config.load()
        self.is_write_paused = False
        self._config = config
        self._app = config.loaded_app
        self._server_state = server_state
        self._app_state = app_state
        self._loop = _loop or asyncio.get_event_loop()
        self._reader = RequestReader()
        self._cycle: AsgiCycle | None = None  # None: there is no current request
        self._transport: asyncio.Transport
        self._connection_scope: dict[str, Any] = {}
        self._writable = asyncio.Event()
        self._is_read_paused = False
        self._timer: asyncio.TimerHandle | None = None
        self._send_timeout: SendTimeout
        self._is_head_timed = False
        self._half_close: HalfClose | None = None  # None: the client has not half-closed
        self._is_ending = False  # received data is dropped
        self._num_dropped_bytes = 0

    # Called by the transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol."""
        self._server_state.connections.add(self)  # type: ignore[arg-type]  # uvicorn's annotation lists its own classes
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is not a subclass
        self._send_timeout = SendTimeout(self._transport)
        self._connection_scope = {
            "type": "http",
            "asgi": {"version": self._config.asgi_version, "spec_version": "2.3"},
            "server": get_local_addr(self._transport),
            "client": get_remote_addr(self._transport),
            "scheme": "https" if is_ssl(self._transport) else "http",
            "root_path": self._config.root_path,
        }
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  # asyncio's signature
        """See asyncio.Protocol."""
        self._server_state.connections.discard(self)
        self._is_ending = True
        self._stop_timer()
        self._send_timeout.stop()
        if self._half_close is not None:
            self._half_close.stop()
        if self._cycle is not None:
            self._cycle.disconnect()
        self.resume_writing()

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        if not self._is_ending:
            self._reader.push(data)
            self._advance()
            return
        self._num_dropped_bytes += len(data)
        if self._num_dropped_bytes > MAX_LINGER_BYTES:
            self._transport.abort()

    def eof_received(self) -> bool:
        """Return whether to keep the connection open for the response. See asyncio.Protocol."""
        cycle = self._cycle
        if cycle is None or self._is_ending or not self._reader.is_body_complete or not self._can_half_close():
            return False
        cycle.keeps_alive = cycle.keeps_alive and self._reader.num_buffered > 0  # there may be another request
        self._half_close = HalfClose(self._transport, send_ahead=self._send_ahead, on_reset=self.abort)
        return True

    def pause_writing(self) -> None:
        """See asyncio.Protocol."""
        self.is_write_paused = True
        self._writable.clear()
        self._send_timeout.start(self.stall_seconds)

    def resume_writing(self) -> None:
        """See asyncio.Protocol."""
        self.is_write_paused = False
        self._writable.set()
        if not self._is_ending:
            self._send_timeout.stop()

    # Called by uvicorn's server

    def shutdown(self) -> None:
        """Close the connection after the current response, at once if there is none."""
        if self._cycle is None:
            self._close()
        else:
            self._cycle.keeps_alive = False

    # Called by the cycle

    def write(self, data: bytes) -> None:
        """See Connection."""
        self._transport.write(data)

    async def drain(self) -> None:
        """See Connection."""
        await self._writable.wait()

    def resume_reading(self) -> None:
        """See Connection."""
        has_room = self._is_ending or self._reader.num_buffered <= MAX_BUFFER_BYTES
        if self._is_read_paused and has_room and self._half_close is None and not self._transport.is_closing():
            self._is_read_paused = False
            self._transport.resume_reading()

    def abort(self, *, is_reset: bool = False) -> None:
        """See Connection."""
        if is_reset and not self._transport.is_closing():
            linger = struct.pack("ii", 1, 0)  # on, 0 s: drop unsent data and send a reset
            self._transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self._transport.abort()

    def end_response(self) -> None:
        """See Connection."""
        cycle = self._cycle
        assert cycle is not None
        self._cycle = None
        self._server_state.total_requests += 1
        if self._is_ending or self._transport.is_closing():
            return
        if not cycle.keeps_alive:
            self._end()
            return
        self._set_timer(self._config.timeout_keep_alive)
        self._advance()
        self._continue()

    # Reading

    def _continue(self) -> None:
        """Resume reading, or close a half-closed connection that has no further request."""
        if self._half_close is None:
            self.resume_reading()
        elif self._cycle is None and not self._is_ending:
            self._end()

    def _advance(self) -> None:
        """Parse the received data, up to the end of the current request."""
        try:
            if self._cycle is None:
                head = self._reader.read_head()
                if head is None:
                    if self._reader.is_in_head and not self._is_head_timed:
                        self._expect_head()
                    return
                self._stop_timer()
                self._start(head)
            self._read_body()
        except FramingError as error:
            self._reject(ApiError(error.status, str(error)))

    def _start(self, head: RequestHead) -> None:
        """Run the application for a request."""
        path = head.path.decode("ascii")
        if "%" in path:
            path = urllib.parse.unquote(path)
        root_path = self._config.root_path
        scope = self._connection_scope | {
            "method": head.method,
            "http_version": head.version,
            "path": root_path + path,
            "raw_path": root_path.encode("ascii") + head.path,
            "query_string": head.query,
            "headers": head.headers,
            "state": self._app_state.copy(),
        }
        cycle = self._cycle = AsgiCycle(
            self,
            scope,
            self._server_state.default_headers,
            keeps_alive=head.keeps_alive,
            expects_continue=head.expects_continue,
        )
        # In a new context: the reading callback may run in that of the previous request.
        task = self._loop.create_task(cycle.run(self._app), context=contextvars.Context())
        self._server_state.tasks.add(task)
        task.add_done_callback(self._server_state.tasks.discard)

    def _read_body(self) -> None:
        cycle = self._cycle
        assert cycle is not None
        if cycle.has_more_body:
            cycle.feed(self._reader.read_body(), is_last=self._reader.is_body_complete)
        is_enough = max(cycle.num_unread, self._reader.num_buffered) > MAX_BUFFER_BYTES
        if is_enough and not self._is_read_paused and self._half_close is None:
            self._is_read_paused = True
            self._transport.pause_reading()

    def _reject(self, error: ApiError) -> None:
        """Respond to bytes that are not a valid request. The rest of the connection cannot be parsed."""
        logger.warning("A request was rejected: %s", error.message)
        if self._cycle is not None:
            self._cycle.disconnect()
            if self._cycle.is_started:
                self.abort()
                return
        scope = {"method": "GET", "http_version": "1.1"}
        defaults = self._server_state.default_headers
        self._cycle = AsgiCycle(self, scope, defaults, keeps_alive=False, expects_continue=False)
        self._cycle.respond(error.status, [(b"content-type", b"application/json")], bytes(error.response().body))

    def _can_half_close(self) -> bool:
        return not is_ssl(self._transport)

    def _send_ahead(self) -> None:
        if self._cycle is not None:
            self._cycle.send_ahead()

    # Timeouts

    def _expect_head(self) -> None:
        self._set_timer(self.head_seconds)
        self._is_head_timed = True

    def _set_timer(self, seconds: float) -> None:
        self._stop_timer()
        self._timer = self._loop.call_later(seconds, self._time_out)

    def _stop_timer(self) -> None:
        self._is_head_timed = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _time_out(self) -> None:
        """Close a connection on which no request arrived in time."""
        if self._reader.is_in_head:
            message = f"The request head did not arrive within {self.head_seconds:g} seconds."
            self._reject(ApiError(408, message))
        else:
            self._close()

    # Closing

    def _end(self) -> None:
        """Close the connection after a response, so that the client can read the response.

        Data that arrives at a closed socket causes a reset, and the client's system drops what it has not read yet. So
        the rest of a request that got an early response is read and dropped first.
        """
        is_all_read = self._reader.is_body_complete and not self._reader.num_buffered and not self._is_read_paused
        if is_all_read or self._half_close is not None or not self._can_half_close():
            self._close()
            return
        self._is_ending = True
        self.resume_reading()
        self._transport.write_eof()
        self._stop_timer()
        self._timer = self._loop.call_later(LINGER_SECONDS, self._transport.abort)

    def _close(self) -> None:
        self._is_ending = True
        self._stop_timer()
        self._transport.close()
        if self._transport.get_write_buffer_size() > 0:
            self._send_timeout.start(self.flush_seconds)
