"""SendTimeout: abort a connection whose client does not read."""

import asyncio


class SendTimeout:
    """A timeout without progress in the transport's write buffer; a slow client that reads is not affected."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._timer: asyncio.TimerHandle | None = None

    def start(self, seconds: float) -> None:
        """Abort the connection after `seconds` without progress; replaces an earlier start."""
        self.stop()
        num_bytes = self._transport.get_write_buffer_size()
        self._timer = asyncio.get_running_loop().call_later(seconds, self._check, num_bytes, seconds)

    def stop(self) -> None:
        """Cancel the timeout."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _check(self, num_bytes: int, seconds: float) -> None:
        if self._transport.get_write_buffer_size() < num_bytes:
            self.start(seconds)
        else:
            self._transport.abort()
