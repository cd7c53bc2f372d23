"""MessageSender: messages of the engine process to the API process, from the step loop and the heartbeat thread."""

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
MAX_STEP_SECONDS = 120.0  # a step that takes longer is stuck


class MessageSender:
    """Sends whole frames from any thread."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._lock = threading.Lock()
        self._batch: list[int] = []
        self._looped_at_seconds = time.monotonic()

    def send(self, message: msgspec.Struct) -> None:
        """Send a message; raises BrokenPipeError or ConnectionResetError if the connection is closed."""
        frame = encode_frame(message)
        with self._lock:
            self._connection.sendall(frame)

    def announce(self, request_ids: list[int]) -> None:
        """Send the request ids of the step that begins, unless they are those of the step before."""
        if request_ids != self._batch:
            self._batch = request_ids
            self.send(BatchBegins(request_ids=request_ids))

    def loop(self) -> None:
        """Record that the step loop begins another step."""
        self._looped_at_seconds = time.monotonic()

    def start_heartbeats(self) -> None:
        """Send a heartbeat twice a second while the calling thread, which runs the step loop, makes progress.

        It makes progress if it has used processor time since the last heartbeat: then it is neither stopped nor
        blocked. An idle loop must run at least once in each heartbeat period.
        """
        clock = time.pthread_getcpuclockid(threading.get_ident())
        threading.Thread(target=self._send_heartbeats, args=(clock,), daemon=True).start()

    def _send_heartbeats(self, clock: int) -> None:
        used_seconds = 0.0
        with contextlib.suppress(OSError):  # the API process has ended; the thread of the inbox ends this process
            while True:
                time.sleep(HEARTBEAT_SECONDS)
                before, used_seconds = used_seconds, time.clock_gettime(clock)
                is_stuck = time.monotonic() - self._looped_at_seconds > MAX_STEP_SECONDS
                if used_seconds > before and not is_stuck:
                    self.send(Heartbeat())


class MessageSenderHandler(logging.Handler):
    """Sends log records of this process to the API process, which writes them."""

    def __init__(self, sender: MessageSender) -> None:
        super().__init__(logging.INFO)
        self.setFormatter(TracebackFormatter())
        self._sender = sender

    def emit(self, record: logging.LogRecord) -> None:
        """See logging.Handler."""
        with contextlib.suppress(OSError):
            self._sender.send(EngineLog(level=record.levelno, text=self.format(record)))
