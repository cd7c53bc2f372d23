"""Ranks that fail: at the start one line says why, later the engine ends and runs no step again."""

import logging
import os
import select
import socket
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from caravan.model.cpu.build import KernelsUnavailable
from caravan.model.exchange import ExchangeFailed
from caravan.scheduler import process, rank, ranked_loading, ranks
from caravan.scheduler.channel import encode_frame
from caravan.scheduler.faults import is_fatal
from caravan.scheduler.loaded_model import start_engine
from caravan.scheduler.messages import StartEngine
from caravan.scheduler.rank_cores import SYSTEM, RankCores
from caravan.scheduler.rank_messages import (
    ClearBlock,
    RankFailed,
    RankLoaded,
    RunOtherLogits,
    StartRank,
    ToRank,
    receive,
)
from caravan.scheduler.ranked_engine import RankedEngine
from caravan.scheduler.ranked_loading import load_ranked
from caravan.scheduler.ranks import Ranks
from tests.scheduler.requests import make_request
from tests.support.rank_threads import RankThread, engine_with, spawn_thread, start_of
from tests.support.tiny_llama import run_to_end
from tests.support.waiting import eventually

LOADED = RankLoaded(weight_bytes=10, mapped_bytes=1)
START = StartEngine(model_path="none", num_ranks=2)


class ScriptedRank(RankThread):
    """A rank that sends some messages after the first one that it gets, and ends when it has got another one."""

    def __init__(self, connection: socket.socket, *messages: msgspec.Struct) -> None:
        self._messages = messages
        super().__init__(connection)

    def _serve(self) -> None:
        with self._connection, suppress(BrokenPipeError, ConnectionResetError):
            message = msgspec.msgpack.decode(receive(self._connection), type=ToRank)
            assert isinstance(message, StartRank)
            for message in self._messages:
                self._connection.sendall(encode_frame(message))
            if self._messages:
                self._connection.recv(1)


def scripted(*messages: msgspec.Struct) -> Ranks:
    """Return the ranks of a model, of which there is one beside the first."""
    cores = [RankCores(1), RankCores(1)]
    return Ranks(START, cores, 0, lambda connection, _: ScriptedRank(connection.dup(), *messages))


def wait_for(values: list[str]) -> str:
    """Return the only value when it is there."""
    eventually(lambda: bool(values))
    (value,) = values
    return value


def test_a_rank_that_has_loaded_is_reported() -> None:
    others = scripted(LOADED)
    others.wait_loaded()
    assert others.reports == [LOADED]
    assert others.num_ranks == 2
    others.close()


def test_a_rank_that_cannot_load_says_why_in_one_line() -> None:
    others = scripted(RankFailed(reason="There is no memory."))
    with pytest.raises(ValueError, match=r"^Rank 1 of 2 cannot start: There is no memory\.$"):
        others.wait_loaded()
    others.close()


def test_a_rank_that_ends_at_the_start_is_named() -> None:
    others = scripted()
    with pytest.raises(ValueError, match=r"^The process of rank 1 ended \(exit status 0\)\.$"):
        others.wait_loaded()
    others.close()


def test_a_rank_that_fails_later_is_reported_once() -> None:
    others = scripted(LOADED, RankFailed(reason="IndexError", traceback="line 1"))
    others.wait_loaded()
    reasons: list[str] = []
    others.watch(reasons.append)
    assert wait_for(reasons) == "Rank 1 failed: IndexError\nline 1"
    others.fail("again")
    assert len(reasons) == 1
    others.close()


def test_a_rank_that_ends_between_two_steps_is_reported() -> None:
    others = scripted(LOADED)
    others.wait_loaded()
    reasons: list[str] = []
    others.watch(reasons.append)
    others.send(ClearBlock(0))
    assert wait_for(reasons) == "The process of rank 1 ended (exit status 0)."
    with pytest.raises(ExchangeFailed, match="rank 1 ended"):
        others.send(ClearBlock(0))
    others.close()


def test_a_rank_that_takes_no_message_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "SEND_SECONDS", 0.1)

    class DeafRank(RankThread):
        def _serve(self) -> None:
            with self._connection:
                poll = select.poll()
                poll.register(self._connection, 0)
                poll.poll()  # until the end

    others = Ranks(START, [RankCores(1), RankCores(1)], 0, lambda connection, _: DeafRank(connection.dup()))
    reasons: list[str] = []
    others.on_failure = reasons.append
    with pytest.raises(ExchangeFailed, match=r"Rank 1 has taken no message for 0\.1 seconds"):
        others.send(RunOtherLogits(bytearray(2**24), 1))
    assert len(reasons) == 1
    others.close()


def test_processes_that_do_not_end_are_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "STOP_SECONDS", 0.1)
    killed: list[int] = []

    class Sleeper(ScriptedRank):
        def wait(self, timeout: float | None = None) -> int:
            if not killed:
                raise subprocess.TimeoutExpired("rank", timeout or 0)
            return super().wait(timeout)

        def kill(self) -> None:
            killed.append(1)

    others = Ranks(START, [RankCores(1), RankCores(1)], 0, lambda connection, _: Sleeper(connection.dup(), LOADED))
    others.wait_loaded()
    assert others._ended(1) == "The process of rank 1 ended (it closed its socket)."
    others.close()
    assert killed == [1]
    others.kill()
    assert killed == [1, 1]


def test_a_call_that_fails_in_the_first_rank_is_fatal_and_not_run_again(tiny_model_path: Path) -> None:
    calls: list[int] = []

    def broken(*_: Any) -> torch.Tensor:
        calls.append(1)
        raise IndexError("a defect")

    with engine_with(start_of(tiny_model_path, 2)) as engine:
        assert isinstance(engine, RankedEngine)
        reasons: list[str] = []
        engine.model.ranks.on_failure = reasons.append
        engine.model.part.logits = broken  # type: ignore[assignment, method-assign]
        for index in range(3):
            engine.add(make_request(index, [1, 2, 3]))
        with pytest.raises(ExchangeFailed, match="out of step") as raised:
            engine.step()
    assert is_fatal(raised.value)
    assert calls == [1]
    assert reasons[0].startswith("The first rank failed.")
    assert "IndexError" in reasons[0]


@pytest.mark.parametrize("error", [IndexError("a defect"), ValueError("a defect")])
def test_a_rank_that_fails_in_a_step_ends_the_engine(
    tiny_model_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr(ranked_loading, "EXCHANGE_SECONDS", 1.0)

    def broken(*_: Any) -> Any:
        raise error

    with engine_with(start_of(tiny_model_path, 2)) as engine:
        assert isinstance(engine, RankedEngine)
        reasons: list[str] = []
        engine.model.ranks.watch(reasons.append)
        monkeypatch.setattr(rank, "batch_of", broken)
        engine.add(make_request(1, [1, 2, 3]))
        with pytest.raises(ExchangeFailed):
            engine.step()
        assert type(error).__name__ in wait_for(reasons) or "a defect" in reasons[0]


def test_the_pool_of_a_rank_is_copied_cleared_and_resized_with_that_of_the_first(tiny_model_path: Path) -> None:
    requests = [make_request(index, [*range(1, 30)], max_tokens=4, seed=index) for index in range(2)]
    with engine_with(start_of(tiny_model_path, 2)) as engine:
        first = run_to_end(engine, requests)
        engine.kv_cache.clear_block(0)
        engine.kv_cache.copy_block(1, 2)
        engine.shrink_pool()
        assert engine.kv_cache.num_blocks == engine.config.num_blocks
        assert run_to_end(engine, requests) == first


def test_an_engine_ends_with_its_ranks(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)
    others = scripted(LOADED)
    others.wait_loaded()
    process._end(others, "Rank 1 failed: it is gone")
    assert codes == [1]
    assert "The engine ends, because a rank failed. Rank 1 failed: it is gone" in caplog.text
    others.close()


def test_a_model_that_cannot_be_divided_so_often_is_refused_and_leaves_no_rank(tiny_model_path: Path) -> None:
    with pytest.raises(ValueError, match="can be split between at most 4 ranks; there are 5"):
        load_ranked(start_of(tiny_model_path, 5), spawn_thread)


def test_a_pool_that_is_too_small_is_refused_and_leaves_no_rank(
    tiny_model_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[int] = []
    close: Callable[[Ranks], None] = Ranks.close

    def observed(one: Ranks) -> None:
        closed.append(1)
        close(one)

    monkeypatch.setattr(Ranks, "close", observed)
    monkeypatch.setattr(load_ranked, "__defaults__", (spawn_thread, SYSTEM))
    with pytest.raises(ValueError, match="does not fit in a KV pool"):
        start_engine(start_of(tiny_model_path, 2, pool_bytes=1000))
    assert closed == [1]


def test_without_kernels_there_are_no_ranks(tiny_model_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unavailable(*_: Any) -> None:
        raise KernelsUnavailable("There is no compiler.")

    monkeypatch.setattr(ranked_loading, "SharedMemoryExchange", unavailable)
    with pytest.raises(ValueError, match="--tensor-parallel needs the kernels, which cannot be built. There is no"):
        load_ranked(start_of(tiny_model_path, 2), spawn_thread)


def test_ranks_on_a_gpu_are_refused(tiny_model_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranked_loading, "choose_device", lambda _: torch.device("cuda"))
    with pytest.raises(ValueError, match="on GPUs it is not built"):
        load_ranked(start_of(tiny_model_path, 2), spawn_thread)


def test_a_rank_ends_with_the_first_one(monkeypatch: pytest.MonkeyPatch) -> None:
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)
    ours, theirs = socket.socketpair()
    with theirs:
        ours.close()
        with pytest.raises(ConnectionResetError):
            rank.serve_parent(theirs)
        eventually(lambda: bool(codes))
    assert codes == [0]


def test_a_rank_logs_no_warnings_that_the_first_one_logs(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    served: list[object] = []
    monkeypatch.setattr(rank, "run_process", served.append)
    try:
        rank.main()
        logging.getLogger("caravan").warning("The kernels cannot be built.")
    finally:
        logging.disable(logging.NOTSET)
    assert served == [rank.serve_parent]
    assert caplog.text == ""
