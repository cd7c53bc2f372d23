"""Ranks that join from other hosts: who is admitted, and that they compute the bits of one process."""

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest

from caravan.model.exchange import Exchange, SharedMemoryExchange, new_memory
from caravan.scheduler import joined_rank, joining_rank, rank_secret, ranked_loading
from caravan.scheduler.channel import encode_frame
from caravan.scheduler.joined_rank import JoinedRank, wait_for_ranks
from caravan.scheduler.messages import StartEngine
from caravan.scheduler.rank_cores import RankCores
from caravan.scheduler.rank_messages import GroupJoined, JoinRank, RankFailed, RankLoaded, receive
from caravan.scheduler.rank_options import REFUSED, RankOptions
from caravan.scheduler.rank_secret import NotAdmitted, admit
from caravan.scheduler.rank_store import RankStore
from caravan.scheduler.ranked_loading import load_ranked
from caravan.scheduler.ranks import Ranks
from tests.scheduler.requests import make_request
from tests.support.gguf_files import write_tiny_llama
from tests.support.joining_ranks import SECRET, JoiningThread, connect, free_address, secret_file
from tests.support.rank_threads import engine_with, spawn_thread, start_of
from tests.support.tiny_llama import run_to_end, tiny_llama

REQUESTS = [
    make_request(0, [*range(1, 30)], max_tokens=6, num_logprobs=2),
    make_request(1, [*range(7, 60)], max_tokens=6, temperature=0.9, seed=3),
]


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch) -> str:
    """Where ranks join. Nothing of this machine's network is put into the environment."""
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "lo")
    return free_address()


@pytest.fixture
def shared_memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Exchange through shared memory, as one process cannot be in a group twice; the store is used as by a group."""
    memory = new_memory()

    def join(store: RankStore, rank: int, num_ranks: int, *_: Any) -> Exchange:
        store.set(f"rank {rank}", str(rank))
        store.add("number", 1)
        store.wait([f"rank {other}" for other in range(num_ranks)])
        assert [store.get(f"rank {other}") for other in range(num_ranks)] == [b"0", b"1", b"2"][:num_ranks]
        assert store.check(["rank 0"])
        assert not store.check(["rank 0", "rank 9"])
        return SharedMemoryExchange(rank, num_ranks, memory, 60)

    monkeypatch.setattr(ranked_loading, "join_group", join)
    yield
    os.close(memory)


def start_with(path: Path, address: str, folder: Path, num_ranks: int = 2, **changes: Any) -> StartEngine:
    """Return the start of an engine of which one rank joins."""
    return msgspec.structs.replace(
        start_of(path, num_ranks),
        num_joining_ranks=1,
        rank_address=address,
        rank_secret_path=str(secret_file(folder)),
        **changes,
    )


def start_waiting(start: StartEngine) -> tuple[threading.Thread, list[JoinedRank]]:
    """Return a thread that waits for ranks, and the list into which it puts them."""
    found: list[JoinedRank] = []

    def wait() -> None:
        with suppress(ConnectionError):  # nobody comes
            found.extend(wait_for_ranks(start))

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread, found


@pytest.mark.usefixtures("shared_memory")
@pytest.mark.parametrize("num_ranks", [2, 3])
def test_a_joined_rank_gives_the_bits_of_one_process(
    tiny_model_path: Path, tmp_path: Path, address: str, num_ranks: int
) -> None:
    with engine_with(start_of(tiny_model_path)) as engine:
        expected = run_to_end(engine, REQUESTS)
    rank = JoiningThread(address, tiny_model_path)
    with engine_with(start_with(tiny_model_path, address, tmp_path, num_ranks)) as engine:
        assert run_to_end(engine, REQUESTS) == expected
    rank.join()
    assert rank.exit_status is None


@pytest.mark.usefixtures("shared_memory")
def test_the_end_of_a_joined_rank_is_noticed_between_two_steps(
    tiny_model_path: Path, tmp_path: Path, address: str
) -> None:
    rank = JoiningThread(address, tiny_model_path)
    loaded = load_ranked(start_with(tiny_model_path, address, tmp_path), spawn_thread)
    loaded.make_engine()
    assert loaded.ranks is not None
    assert loaded.ranks.pids == []
    failed = threading.Event()
    reasons: list[str] = []

    def on_failure(reason: str) -> None:
        reasons.append(reason)
        failed.set()

    loaded.ranks.watch(on_failure)
    assert rank.connection is not None
    rank.connection.shutdown(socket.SHUT_RDWR)
    assert failed.wait(60)
    assert reasons == ["Rank 1 of 2 at 127.0.0.1 has closed its connection."]
    loaded.ranks.kill()
    loaded.ranks.close()
    rank.join()


def test_threat_38_ranks_without_the_secret_are_not_admitted(
    tiny_model_path: Path, tmp_path: Path, address: str, caplog: pytest.LogCaptureFixture
) -> None:
    thread, found = start_waiting(start_with(tiny_model_path, address, tmp_path))
    with pytest.raises(NotAdmitted, match="another secret"):
        connect(address, b"another secret of 16 bytes")
    for words in (b"GET / HTTP/1.1\r\nHost: engine\r\n\r\n" + bytes(80), b"short", b""):
        with connect(address, None) as stranger:
            stranger.sendall(words)
            stranger.shutdown(socket.SHUT_WR)
            received = b""
            with suppress(ConnectionResetError):
                while more := stranger.recv(4096):
                    received += more
        assert SECRET not in received
        assert received[48:] in (b"", bytes(32))  # after a greeting a refusal, and nothing that only the secret gives
    assert thread.is_alive()
    assert found == []
    with connect(address) as connection:
        connection.sendall(b"\x05\0\0\0wrong")  # with the secret, but no message
        assert connection.recv(1) == b""
    JoiningThread(address, tiny_model_path)
    thread.join(60)
    assert [one.address for one in found] == ["127.0.0.1"]
    assert "it has another secret" in caplog.text
    assert "has ended before it joined" in caplog.text
    found[0].connection.close()


@contextmanager
def listener_that(answers: Callable[[socket.socket], None]) -> Iterator[str]:
    """Yield the address of a listener that answers one connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept() -> None:
            connection, _ = listener.accept()
            with connection:
                answers(connection)

        thread = threading.Thread(target=accept)
        thread.start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        thread.join()


def test_threat_38_an_engine_without_the_secret_gets_no_rank() -> None:
    """A listener that sends back what it gets proves nothing."""

    def mirror(connection: socket.socket) -> None:
        connection.sendall(b"caravan rank 2\r\n" + bytes(32))
        answer = connection.recv(64)
        connection.sendall(answer[32:])

    with listener_that(mirror) as address, pytest.raises(NotAdmitted, match="does not have the secret"):
        connect(address)


def test_an_engine_that_ends_within_the_handshake_does_not_end_the_rank() -> None:
    def end(connection: socket.socket) -> None:
        connection.sendall(b"caravan rank 2\r\n" + bytes(32))
        connection.recv(64)

    # `caravan rank` tries again after an OSError
    with listener_that(end) as address, pytest.raises(ConnectionResetError):
        connect(address)


def test_a_listener_of_another_version_gets_no_rank() -> None:
    def answer(connection: socket.socket) -> None:
        connection.sendall(b"caravan rank 1\r\n" + bytes(32))
        connection.recv(1)

    with listener_that(answer) as address, pytest.raises(NotAdmitted, match="another version"):
        connect(address)


def test_a_rank_with_another_model_is_refused(
    tiny_model_path: Path, tmp_path: Path, address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.gguf"
    write_tiny_llama(other, model=tiny_llama(seed=9, hidden_size=64, vocab_size=278))
    thread, found = start_waiting(start_with(tiny_model_path, address, tmp_path))
    refused = JoiningThread(address, other)
    refused.join()
    assert refused.exit_status == REFUSED
    assert "refuses this rank. The rank differs from the engine in `" in capsys.readouterr().err
    missing = JoiningThread(address, tmp_path / "none.gguf")
    missing.join()
    assert missing.exit_status == REFUSED
    assert "Cannot use" in capsys.readouterr().err
    JoiningThread(address, tiny_model_path)
    thread.join(60)
    assert len(found) == 1
    found[0].connection.close()


def test_a_rank_that_leaves_before_the_others_come_is_forgotten(
    tiny_model_path: Path, tmp_path: Path, address: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    start = msgspec.structs.replace(start_with(tiny_model_path, address, tmp_path, 3), num_joining_ranks=2)
    thread, found = start_waiting(start)
    first = JoiningThread(address, tiny_model_path)
    while "has joined" not in caplog.text:
        time.sleep(0.02)
    assert first.connection is not None
    first.connection.shutdown(socket.SHUT_RDWR)
    first.join()
    time.sleep(2 * joined_rank.POLL_SECONDS)
    JoiningThread(address, tiny_model_path)
    thread.join(1)
    assert thread.is_alive()
    JoiningThread(address, tiny_model_path)
    thread.join(60)
    assert len(found) == 2
    for one in found:
        one.connection.close()


def test_too_many_connections_without_the_secret_are_closed(
    tiny_model_path: Path, tmp_path: Path, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(joined_rank, "MAX_PENDING", 1)
    monkeypatch.setattr(joined_rank, "REJOIN_SECONDS", 3.0)
    thread, found = start_waiting(start_with(tiny_model_path, address, tmp_path, is_replacement=True))
    with connect(address, None) as first:
        assert len(first.recv(48)) == 48
        with connect(address, None) as second:
            assert second.recv(48) == b""
    thread.join(60)
    assert found == []


def test_threat_38_a_proof_that_comes_byte_by_byte_comes_too_late(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_secret, "ADMISSION_SECONDS", 0.3)
    ours, theirs = socket.socketpair()

    def drip() -> None:
        with suppress(OSError):
            for _ in range(64):
                theirs.sendall(b"x")
                time.sleep(0.1)

    with ours, theirs:
        thread = threading.Thread(target=drip)
        thread.start()
        started = time.monotonic()
        with pytest.raises(TimeoutError):
            admit(ours, SECRET)
        assert time.monotonic() - started < 3
        theirs.shutdown(socket.SHUT_RDWR)
        thread.join()


def test_an_engine_that_replaces_another_does_not_wait_for_ever(
    tiny_model_path: Path, tmp_path: Path, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(joined_rank, "REJOIN_SECONDS", 0.1)
    start = start_with(tiny_model_path, address, tmp_path, is_replacement=True)
    with pytest.raises(ConnectionError, match=r"Only 0 of 1 ranks have joined at .* within 0\.1 seconds"):
        wait_for_ranks(start)


def test_an_address_that_is_in_use_is_one_line(tiny_model_path: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        taken = f"127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(OSError, match=f"Cannot listen on {taken} for ranks: Address already in use"):
            wait_for_ranks(start_with(tiny_model_path, taken, tmp_path))


class TestStart:
    """What the first rank does with a connection whose other end is played by the test."""

    @pytest.fixture
    def pair(self) -> Iterator[tuple[Ranks, socket.socket]]:
        """The ranks of a model of which one has joined, and its end of the connection."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            theirs = socket.create_connection(listener.getsockname())
            ours, peer = listener.accept()
        start = StartEngine(model_path="none", num_ranks=2, num_joining_ranks=1)
        ranks = Ranks(start, [RankCores(1)], None, joined=[JoinedRank(ours, peer[0])])
        with theirs:
            yield ranks, theirs
        ranks.close()

    def test_a_rank_that_cannot_join_the_group_is_named(self, pair: tuple[Ranks, socket.socket]) -> None:
        ranks, theirs = pair
        store = RankStore()
        theirs.sendall(encode_frame(RankFailed(reason="There is no gloo.")))
        with (
            pytest.raises(ConnectionError, match=r"^Rank 1 of 2 at 127\.0\.0\.1 cannot start: There is no gloo\.$"),
            ranks.serving(store),
        ):
            store.get("rank 1")

    def test_a_rank_that_ends_while_it_joins_the_group_is_named(self, pair: tuple[Ranks, socket.socket]) -> None:
        ranks, theirs = pair
        store = RankStore()
        theirs.close()
        with (
            pytest.raises(ConnectionError, match=r"^Rank 1 of 2 at 127\.0\.0\.1 ended while it joined the others\.$"),
            ranks.serving(store),
        ):
            pass

    def test_a_rank_that_ends_while_it_loads_can_come_back(self, pair: tuple[Ranks, socket.socket]) -> None:
        ranks, theirs = pair
        theirs.sendall(encode_frame(GroupJoined()))
        with ranks.serving(RankStore()):
            pass
        theirs.close()
        with pytest.raises(ConnectionError, match="has closed its connection"):
            ranks.wait_loaded()

    def test_ranks_share_the_memory_of_their_host(self, pair: tuple[Ranks, socket.socket]) -> None:
        ranks, _ = pair
        (own,) = ranks._processes
        ranks.reports = [RankLoaded(weight_bytes=1, mapped_bytes=0, free_bytes=70)]
        assert ranks.hosts(100) == [(100, [0, 1])]
        assert isinstance(own, JoinedRank)
        ranks._processes[0] = JoinedRank(own.connection, "10.0.0.2")
        assert ranks.hosts(100) == [(100, [0]), (70, [1])]


def test_a_rank_ends_with_the_engine_or_with_the_program_that_started_it(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = threading.Event()
    monkeypatch.setattr(os, "_exit", lambda _: ended.set())
    for is_engine in (True, False):
        ended.clear()
        ours, theirs = socket.socketpair()
        reader, writer = os.pipe()
        thread = threading.Thread(target=joining_rank._end_with, args=(ours, reader), daemon=True)
        thread.start()
        assert not ended.wait(0.1)
        if is_engine:
            theirs.close()
        else:
            os.close(writer)
        assert ended.wait(60)
        thread.join()
        for end in (ours, theirs):
            end.close()
        for descriptor in (reader, *([writer] if is_engine else [])):
            os.close(descriptor)


def test_facts_are_sent_before_anything_is_loaded(tiny_model_path: Path, address: str) -> None:
    ours, theirs = socket.socketpair()

    def join() -> None:
        with suppress(OSError):
            joining_rank.serve_first_rank(theirs, RankOptions(model_path=str(tiny_model_path), address=address))

    with ours, theirs:
        thread = threading.Thread(target=join)
        thread.start()
        message = msgspec.msgpack.decode(receive(ours), type=JoinRank)
        assert {"torch", "kernels", "weights", "Caravan"} <= message.facts.keys()
        ours.shutdown(socket.SHUT_RDWR)
        thread.join(60)
        assert not thread.is_alive()
