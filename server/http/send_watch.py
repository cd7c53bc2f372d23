"""SendWatch: cuts a connection whose client takes nothing of what waits to be sent."""

import asyncio


class SendWatch:
    """A watch over what a transport has buffered; however slow, a client that goes on taking some is waited for."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._timer: asyncio.TimerHandle | None = None

    def start(self, seconds: float) -> None:
        """Cut the connection when nothing is taken for `seconds`; takes the place of an earlier start."""
        self.stop()
        num_bytes = self._transport.get_write_buffer_size()
        self._timer = asyncio.get_running_loop().call_later(seconds, self._look, num_bytes, seconds)

    def stop(self) -> None:
        """End the watch."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self, num_bytes: int, seconds: float) -> None:
        if self._transport.get_write_buffer_size() < num_bytes:
            self.start(seconds)
        else:
            self._transport.abort()
