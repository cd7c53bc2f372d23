"""Outbox: what the engine process says to the API process, from the step loop and from the thread of its heartbeat."""

import contextlib
import logging
import socket
import threading
import time

import msgspec

from caravan.scheduler.channel import encode_frame
from caravan.scheduler.messages import BatchBegins, EngineLog, Heartbeat
from caravan.scheduler.tracebacks import TracebackFormatter

HEARTBEAT_SECONDS = 0.5
MAX_STEP_SECONDS = 120.0  # a step that takes longer does not end


class MessageSender:
    """Sends whole frames, whichever thread they come from."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._lock = threading.Lock()
        self._batch: list[int] = []
        self._looped_at_seconds = time.monotonic()

    def send(self, message: msgspec.Struct) -> None:
        """Send a message; raises BrokenPipeError or ConnectionResetError when nobody listens."""
        frame = encode_frame(message)
        with self._lock:
            self._connection.sendall(frame)

    def announce(self, request_ids: list[int]) -> None:
        """Say what the step that begins works on, if it is not the same as in the step before."""
        if request_ids != self._batch:
            self._batch = request_ids
            self.send(BatchBegins(request_ids=request_ids))

    def loop(self) -> None:
        """Take note that the step loop came round."""
        self._looped_at_seconds = time.monotonic()

    def start_heartbeats(self) -> None:
        """Send a heartbeat twice a second as long as the calling thread, which runs the step loop, gets on.

        It gets on if it used time of a processor since the last beat: then it is not stopped, and waits for nothing
        that never comes. An idle loop has to come round at least once in a beat.
        """
        clock = time.pthread_getcpuclockid(threading.get_ident())
        threading.Thread(target=self._beat, args=(clock,), daemon=True).start()

    def _beat(self, clock: int) -> None:
        used_seconds = 0.0
        with contextlib.suppress(OSError):  # the API process is gone; the inbox ends this process
            while True:
                time.sleep(HEARTBEAT_SECONDS)
                before, used_seconds = used_seconds, time.clock_gettime(clock)
                is_stuck = time.monotonic() - self._looped_at_seconds > MAX_STEP_SECONDS
                if used_seconds > before and not is_stuck:
                    self.send(Heartbeat())


class MessageSenderHandler(logging.Handler):
    """Sends what this process logs to the API process, which writes it."""

    def __init__(self, sender: MessageSender) -> None:
        super().__init__(logging.INFO)
        self.setFormatter(TracebackFormatter())
        self._outbox = sender

    def emit(self, record: logging.LogRecord) -> None:
        """See logging.Handler."""
        with contextlib.suppress(OSError):
            self._outbox.send(EngineLog(level=record.levelno, text=self.format(record)))
