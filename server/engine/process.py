"""EngineProcess: the engine's child process and the socket to it."""

import asyncio
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping

import msgspec

from caravan.scheduler.channel import FrameSplitter, encode_frame
from caravan.scheduler.messages import (
    AdapterChecked,
    BatchBegins,
    EngineFailed,
    EngineLoaded,
    EngineLog,
    EngineReady,
    EngineSnapshot,
    FromEngine,
    Heartbeat,
    StartEngine,
    StepOutput,
    TakeOver,
    ToEngine,
    WhileRunning,
)

# -P: modules in the current folder must not shadow those of the package.
ENGINE_PROGRAM: tuple[str, ...] = ("-P", "-m", "caravan.scheduler.process")
STANDBY_PROGRAM: tuple[str, ...] = ("-P", "-m", "caravan.scheduler.standby")
STOP_SECONDS = 2.0  # for a process to exit before it is killed
LOADING_SECONDS = 60.0  # for a standby that has to take over before it has loaded

logger = logging.getLogger(__name__)


class EngineStartFailed(Exception):
    """The engine could not load the model; the text is one line for the operator."""

    def __init__(self, reason: str, *, is_permanent: bool = False) -> None:
        """`is_permanent` if the model or its options are at fault: another try fails, too."""
        super().__init__(reason)
        self.is_permanent = is_permanent


class EngineEndedEarly(EngineStartFailed):
    """The engine process ended while it loaded the model, without a reason: it was killed."""


def start_of_replacement(start: StartEngine, report: EngineReady) -> StartEngine:
    """Return the start of a process that replaces one with this report.

    It gets the same limits, not a fraction of the memory that is free then.
    """
    limits = msgspec.structs.replace(
        start.limits,
        kv_cache_memory_bytes=report.kv_cache_bytes,
        max_model_len=report.config.max_model_len,
        has_standby=False,
    )
    return msgspec.structs.replace(start, limits=limits, is_replacement=True)


class EngineProcess(asyncio.Protocol):
    """A child process that holds the model, with the socket to it.

    Loading starts when this object is created, so the parent can do other work meanwhile. The process ends when the
    socket closes, also if the parent was killed.
    """

    def __init__(
        self,
        start: StartEngine,
        on_message: Callable[[WhileRunning], None],
        program: tuple[str, ...] = ENGINE_PROGRAM,
    ) -> None:
        """`on_message` receives each message of the engine after it has loaded, and its log."""
        self._connection, engine_socket = socket.socketpair()
        with engine_socket:
            self._process = subprocess.Popen(
                [sys.executable, *program, str(engine_socket.fileno())],
                pass_fds=(engine_socket.fileno(),),
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # signals to the group go to the server only, which closes the socket
                env=engine_environment(os.environ),
            )
        self._connection.sendall(encode_frame(start))
        self.on_message = on_message
        self._frames = FrameSplitter()
        self._decoder: msgspec.msgpack.Decoder[FromEngine] = msgspec.msgpack.Decoder(FromEngine)
        self._transport: asyncio.Transport | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._report: asyncio.Future[EngineReady | None]  # None: it ended before it was ready
        self._num_received = 0  # messages
        self._has_loaded = asyncio.Event()  # a standby, or it has failed
        self._has_ended = asyncio.Event()

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    async def ready(self) -> EngineReady:
        """Return the engine's report when it has loaded; raises EngineStartFailed if it cannot."""
        await self._connected()
        report = await self._report
        if report is None:
            raise EngineEndedEarly(f"The engine process ended while it loaded the model ({await self.stop()}).")
        return report

    async def loaded(self) -> None:
        """Return when a standby has loaded the model; raises EngineStartFailed if it cannot."""
        await self._connected()
        await self._has_loaded.wait()
        if self._report.done():
            await self.ready()

    async def take_over(self, timeout_seconds: float) -> EngineReady:
        """Make a standby the engine as soon as it has loaded; return its report.

        Raises EngineStartFailed if it cannot, TimeoutError if it does not load within LOADING_SECONDS, or has loaded
        and neither reports nor sends a heartbeat for `timeout_seconds`: on a GPU it records its steps first.
        """
        async with asyncio.timeout(LOADING_SECONDS):
            await self._connected()
            self.send(TakeOver())
            await self.loaded()
        is_alive = True
        while is_alive and not self._report.done():
            num_received = self._num_received
            await asyncio.wait([self._report], timeout=timeout_seconds)
            is_alive = self._num_received > num_received
        if not self._report.done():
            raise TimeoutError
        return await self.ready()

    async def ended(self) -> None:
        """Return when the process or the socket has ended; no message follows."""
        await self._has_ended.wait()

    def send(self, message: ToEngine) -> None:
        """Send a message to the engine; it is dropped if the engine has ended."""
        assert self._transport is not None, "`ready` has returned"
        if not self._transport.is_closing():
            self._transport.write(encode_frame(message))

    def kill(self) -> None:
        """Kill the process; `ended` returns soon after."""
        self._process.kill()

    async def stop(self) -> str:
        """Close the socket and wait for the process to exit, or kill it; return its exit status as text."""
        if self._transport is not None:
            self._transport.close()
        self._connection.close()
        try:
            await asyncio.to_thread(self._process.wait, STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            await asyncio.to_thread(self._process.wait)
        code = self._process.returncode
        return f"signal {-code}" if code < 0 else f"exit status {code}"

    def data_received(self, data: bytes) -> None:
        for body in self._frames.split(data):
            self._num_received += 1
            match self._decoder.decode(body):
                case (
                    StepOutput() | BatchBegins() | Heartbeat() | EngineLog() | EngineSnapshot() | AdapterChecked()
                ) as message:
                    self.on_message(message)
                case EngineReady() | EngineFailed() if self._report.done():  # `ready` has returned
                    pass
                case EngineLoaded():
                    self._has_loaded.set()
                case EngineReady() as report:
                    self._report.set_result(report)
                case EngineFailed(reason=reason, is_permanent=is_permanent):
                    self._report.set_exception(EngineStartFailed(reason, is_permanent=is_permanent))
                    self._has_loaded.set()

    def connection_lost(self, _: Exception | None) -> None:
        self._has_ended.set()
        if not self._report.done():
            self._report.set_result(None)
        self._has_loaded.set()

    async def _connected(self) -> None:
        """Connect to the socket, once; a caller that is cancelled does not interrupt it."""
        if self._connecting is None:
            self._report = asyncio.get_running_loop().create_future()
            self._connecting = asyncio.create_task(self._connect())
        await asyncio.shield(self._connecting)

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        self._transport, _ = await loop.create_connection(lambda: self, sock=self._connection)


def engine_environment(inherited: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of an engine process: the inherited one, with settings for torch's allocator and threads.

    Large tensors get huge pages. Threads that wait at a barrier yield their core after some microseconds: on a busy
    machine the thread they wait for may have none, and a step took a second instead of ten milliseconds.
    """
    return {"GOMP_SPINCOUNT": "1000"} | dict(inherited) | {"THP_MEM_ALLOC_ENABLE": "1"}
