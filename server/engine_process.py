"""EngineProcess: one life of the engine process, seen from the API process."""

import asyncio
import logging
import os
import socket
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress

import msgspec

from scheduler.framing import LENGTH, encode_frame, frame_length
from scheduler.messages import EngineFailed, EngineReady, FromEngine, StartEngine, StepOutput, ToEngine

STOP_SECONDS = 2.0  # how long a process may take to leave before it is killed

logger = logging.getLogger(__name__)


class EngineStartFailed(Exception):
    """The engine could not load its model; the text is one line for the operator."""


class EngineProcess:
    """A child process that holds the model, with the socket to it.

    It starts loading when this object is made, so that the parent can do other work meanwhile. It ends by itself when
    the socket closes, also if the parent was killed.
    """

    def __init__(self, start: StartEngine) -> None:
        self._connection, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                # -P: what lies in the current folder must not stand in for our modules
                [sys.executable, "-P", "-m", "scheduler.process", str(theirs.fileno())],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                env=os.environ | {"THP_MEM_ALLOC_ENABLE": "1"},  # torch: huge pages for large tensors
            )
        self._connection.sendall(encode_frame(start))
        self._reader: asyncio.StreamReader
        self._writer: asyncio.StreamWriter

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    async def ready(self) -> EngineReady:
        """Return the engine's report when it has loaded; raises EngineStartFailed if it cannot."""
        self._reader, self._writer = await asyncio.open_connection(sock=self._connection)
        async with aclosing(self._messages()) as messages:
            async for message in messages:
                match message:
                    case EngineReady():
                        return message
                    case EngineFailed(reason=reason):
                        raise EngineStartFailed(reason)
        raise EngineStartFailed(f"The engine process ended while it loaded the model ({await self.stop()}).")

    async def steps(self) -> AsyncGenerator[StepOutput, None]:
        """Yield what the engine sends, until the process or the socket ends."""
        async with aclosing(self._messages()) as messages:
            async for message in messages:
                assert isinstance(message, StepOutput), "a running engine sends nothing else"
                yield message

    def send(self, message: ToEngine) -> None:
        """Give the engine a message; what a dead engine is given is lost."""
        if not self._writer.is_closing():
            self._writer.write(encode_frame(message))

    def kill(self) -> None:
        """End the process now, whatever it does; `steps` ends soon after."""
        self._process.kill()

    async def stop(self) -> str:
        """Close the socket, see the process end, killing it if need be; return how it ended."""
        with suppress(AttributeError):  # never connected
            self._writer.close()
        self._connection.close()
        try:
            await asyncio.to_thread(self._process.wait, STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            await asyncio.to_thread(self._process.wait)
        code = self._process.returncode
        return f"signal {-code}" if code < 0 else f"exit status {code}"

    async def _messages(self) -> AsyncGenerator[FromEngine, None]:
        decoder: msgspec.msgpack.Decoder[FromEngine] = msgspec.msgpack.Decoder(FromEngine)
        while True:
            try:
                head = await self._reader.readexactly(LENGTH.size)
                body = await self._reader.readexactly(frame_length(head))
            except (asyncio.IncompleteReadError, ConnectionError):
                return
            yield decoder.decode(body)
