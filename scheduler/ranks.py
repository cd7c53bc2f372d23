"""Ranks: the processes that compute a model together with this one, which is the first rank."""

import contextlib
import selectors
import socket
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Protocol, TypeVar

import msgspec

from caravan.model.exchange import ExchangeFailed
from caravan.scheduler.channel import encode_frame
from caravan.scheduler.joined_rank import JoinedRank
from caravan.scheduler.messages import StartEngine
from caravan.scheduler.rank_cores import RankCores
from caravan.scheduler.rank_messages import FromRank, PoolReady, RankFailed, RankLoaded, StartRank, receive

if TYPE_CHECKING:  # it imports torch.distributed
    from caravan.scheduler.rank_store import RankStore

RANK_PROGRAM = ("-P", "-m", "caravan.scheduler.rank")  # -P: modules in the current folder must not shadow others
SEND_SECONDS = 10.0  # for a rank to take a message; one that is stopped takes none
STOP_SECONDS = 2.0  # for a process to exit before it is killed

AnswerT = TypeVar("AnswerT", RankLoaded, PoolReady)


class RankProcess(Protocol):
    """The process of a rank, as subprocess.Popen has it."""

    returncode: int | None

    @property
    def pid(self) -> int:
        """The process id."""

    def wait(self, timeout: float | None = None) -> int:
        """Wait until the process has exited; raises subprocess.TimeoutExpired."""

    def kill(self) -> None:
        """Kill the process."""


Spawn = Callable[[socket.socket, int | None], RankProcess]  # gets the end of the rank, and the exchange's memory


def spawn_rank(connection: socket.socket, memory: int | None) -> RankProcess:
    """Return a new process, which inherits its end of a connection and the memory of the exchange, if there is one."""
    return subprocess.Popen(
        [sys.executable, *RANK_PROGRAM, str(connection.fileno())],
        pass_fds=(connection.fileno(), *(() if memory is None else (memory,))),
        stdin=subprocess.DEVNULL,
        start_new_session=True,  # signals to the group of a program are for the program, which closes the socket
    )


class Ranks:
    """The other ranks of a model: rank 1 and those after it. They run each step that the first rank runs.

    A rank ends when its socket closes, also if this process was killed. When a rank fails, this process must not go on:
    `on_failure` gets the reason, once; it may end the process.
    """

    def __init__(
        self,
        start: StartEngine,
        cores: list[RankCores],
        memory: int | None,
        spawn: Spawn = spawn_rank,
        joined: Sequence[JoinedRank] = (),
    ) -> None:
        """Start a process for each of the cores but the first, which loads its part of the model.

        The ranks after these have joined from other hosts. `memory` is the descriptor of the exchange's memory, None if
        ranks exchange through a group. Raises OSError.
        """
        self.on_failure: Callable[[str], None] = lambda _: None
        self.reports: list[RankLoaded] = []  # of the other ranks, when they have loaded
        self._lock = threading.Lock()
        self._has_failed = False
        self._decoder: msgspec.msgpack.Decoder[FromRank] = msgspec.msgpack.Decoder(FromRank)
        self._connections: list[socket.socket] = []
        self._processes: list[RankProcess] = []
        self._end = weakref.finalize(self, _end, self._connections, self._processes)
        num_ranks = len(cores) + len(joined)
        for rank, own in enumerate(cores[1:], 1):
            self._start(spawn, memory)
            message = StartRank(start=start, rank=rank, num_ranks=num_ranks, memory=memory, cores=own)
            self._send(rank, encode_frame(message))
        for rank, one in enumerate(joined, len(cores)):
            one.connection.settimeout(SEND_SECONDS)
            self._connections.append(one.connection)
            self._processes.append(one)
            message = StartRank(start=start, rank=rank, num_ranks=num_ranks, memory=None, cores=RankCores(0))
            self._send(rank, encode_frame(message))

    @property
    def pids(self) -> list[int]:
        """The process ids of the other ranks on this host."""
        return [process.pid for process in self._processes if not isinstance(process, JoinedRank)]

    @property
    def num_ranks(self) -> int:
        """How many ranks there are, this process included."""
        return len(self._processes) + 1

    @contextlib.contextmanager
    def serving(self, store: "RankStore") -> Iterator[None]:
        """Answer the calls of the other ranks to a store in this block, until they have found each other.

        Raises ConnectionError, with one line, if one of them cannot.
        """
        threads = [
            threading.Thread(target=store.serve, args=(connection, self._name(rank)), daemon=True)
            for rank, connection in enumerate(self._connections, 1)
        ]
        for connection, thread in zip(self._connections, threads, strict=True):
            connection.settimeout(None)
            thread.start()
        try:
            yield
            for thread in threads:
                thread.join()
        except RuntimeError as error:
            raise ConnectionError(store.failure or str(error).splitlines()[0]) from None
        for connection in self._connections:
            connection.settimeout(SEND_SECONDS)
        if store.failure:
            raise ConnectionError(store.failure)

    def wait_loaded(self) -> None:
        """Return when the other ranks have loaded; raises ValueError if one of them cannot."""
        self.reports = [self._answer(rank, RankLoaded) for rank in self._numbers()]

    def hosts(self, free_bytes: int) -> list[tuple[int, list[int]]]:
        """Return the free memory of each host, which is free_bytes on this one, and its ranks, the first one included.

        The other ranks have loaded. Ranks that have come from one address are on one host.
        """
        found: dict[str, tuple[int, list[int]]] = {"": (free_bytes, [0])}
        for rank, (process, report) in enumerate(zip(self._processes, self.reports, strict=True), 1):
            host, host_bytes = "", free_bytes
            if isinstance(process, JoinedRank) and not process.is_on_this_host:
                assert report.free_bytes is not None, "a rank of another host reports it"
                host, host_bytes = process.address, report.free_bytes
            least, own = found.get(host, (host_bytes, []))
            found[host] = min(least, host_bytes), [*own, rank]
        return list(found.values())

    def pool_bytes(self) -> int:
        """Return the size of the pools of the other ranks when they have them; raises ValueError if one cannot."""
        return sum(self._answer(rank, PoolReady).num_bytes for rank in self._numbers())

    def send(self, message: msgspec.Struct) -> None:
        """Send a message to all other ranks; raises ExchangeFailed if one of them does not take it."""
        frame = encode_frame(message)
        for rank in self._numbers():
            self._send(rank, frame)

    def fail(self, reason: str) -> None:
        """Report that the ranks are out of step: no step can be run any more."""
        with self._lock:
            is_first, self._has_failed = not self._has_failed, True
        if is_first:
            self.on_failure(reason)

    def watch(self, on_failure: Callable[[str], None]) -> None:
        """Call `on_failure` when a rank fails or ends, from now on, also between two steps."""
        self.on_failure = on_failure
        threading.Thread(target=self._watch, daemon=True).start()

    def kill(self) -> None:
        """Kill the processes at once, also those that are stopped."""
        for process in self._processes:
            process.kill()

    def close(self) -> None:
        """End the processes; happens by itself when the object is no longer used."""
        with self._lock:
            self._has_failed = True  # the ends of the ranks are no failures any more
        self._end()

    def _numbers(self) -> range:
        return range(1, len(self._processes) + 1)

    def _start(self, spawn: Spawn, memory: int | None) -> None:
        ours, theirs = socket.socketpair()
        ours.settimeout(SEND_SECONDS)
        self._connections.append(ours)
        with theirs:
            self._processes.append(spawn(theirs, memory))

    def _send(self, rank: int, frame: bytes) -> None:
        try:
            self._connections[rank - 1].sendall(frame)
        except TimeoutError:
            reason = f"Rank {rank} has taken no message for {SEND_SECONDS:g} seconds."
        except OSError:
            reason = self._ended(rank)
        else:
            return
        self.fail(reason)
        raise ExchangeFailed(reason)

    def _answer(self, rank: int, kind: type[AnswerT]) -> AnswerT:
        """Return the answer of a rank at the start; raises ValueError, in one line, if it has failed or ended.

        ConnectionError for the end of one on another host, which can come back.
        """
        connection = self._connections[rank - 1]
        connection.settimeout(None)  # a load may take minutes
        try:
            message = self._decoder.decode(receive(connection))
        except OSError:
            is_joined = isinstance(self._processes[rank - 1], JoinedRank)
            raise (ConnectionError if is_joined else ValueError)(self._ended(rank)) from None
        finally:
            connection.settimeout(SEND_SECONDS)
        if isinstance(message, RankFailed):
            raise ValueError(f"{self._name(rank)} cannot start: {message.reason}")
        assert isinstance(message, kind), "a rank answers one question after the other"
        return message

    def _watch(self) -> None:
        """Wait until a rank says that it has failed, or ends."""
        with selectors.DefaultSelector() as selector:
            for rank in self._numbers():
                selector.register(self._connections[rank - 1], selectors.EVENT_READ, rank)
            rank = int(selector.select()[0][0].data)
        try:
            message = self._decoder.decode(receive(self._connections[rank - 1]))
        except (OSError, ValueError):
            self.fail(self._ended(rank))
            return
        assert isinstance(message, RankFailed), "a rank that has started sends nothing else"
        self.fail(f"Rank {rank} failed: {message.reason}\n{message.traceback}".rstrip())

    def _name(self, rank: int) -> str:
        """Return how messages name a rank."""
        process = self._processes[rank - 1]
        place = f" at {process.address}" if isinstance(process, JoinedRank) else ""
        return f"Rank {rank} of {self.num_ranks}{place}"

    def _ended(self, rank: int) -> str:
        """Return the sentence about a process that has closed its socket."""
        process = self._processes[rank - 1]
        if isinstance(process, JoinedRank):
            return f"{self._name(rank)} has closed its connection."
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_SECONDS)
        code = process.returncode
        how = "it closed its socket" if code is None else f"signal {-code}" if code < 0 else f"exit status {code}"
        return f"The process of rank {rank} ended ({how})."


def _end(connections: list[socket.socket], processes: list[RankProcess]) -> None:
    """Close the sockets, which ends the processes, and kill those that do not end."""
    for connection in connections:
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)
        connection.close()
    for process in processes:
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
