"""The engine process by itself, at the other end of a socket, and its loop in a thread of the test."""

import contextlib
import functools
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TypeVar, cast

import msgspec
import pytest
from llguidance import LLMatcher

from caravan.model.cpu.weights_cache import WeightsCache
from caravan.scheduler import loaded_model, message_sender, process, standby
from caravan.scheduler.channel import LENGTH, encode_frame, frame_length
from caravan.scheduler.config import EngineLimits, Shortage
from caravan.scheduler.message_sender import MessageSender
from caravan.scheduler.messages import (
    Abort,
    BatchBegins,
    EngineFailed,
    EngineLoaded,
    EngineLog,
    EngineReady,
    EngineSnapshot,
    FromEngine,
    Heartbeat,
    SequenceOutput,
    StartEngine,
    StepOutput,
    Subscribe,
    TakeOver,
)
from caravan.scheduler.parent_connection import reported_failures
from tests.scheduler.requests import make_request

LIMITS = EngineLimits(kv_cache_memory_bytes=2**18, max_model_len=256)
ONE_AFTER_ANOTHER = b"the numbers one two one two one two one two "

MessageT = TypeVar("MessageT", bound=msgspec.Struct)


class EngineThread:
    """The loop of an engine process in a thread, and this end of its socket."""

    def __init__(self, start: StartEngine, serve: Callable[[socket.socket], None] = process.serve) -> None:
        self._serve_parent = serve
        self._socket, self._engine_socket = socket.socketpair()
        self._socket.settimeout(60)
        self.stream = self._socket.makefile("rb")
        self.exit_status: int | str | None = None
        self._decoder: msgspec.msgpack.Decoder[FromEngine] = msgspec.msgpack.Decoder(FromEngine)
        self.send(start)
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def send(self, message: msgspec.Struct) -> None:
        self._socket.sendall(encode_frame(message))

    def receive(self, kind: type[MessageT], holds: Callable[[MessageT], bool] = lambda _: True) -> MessageT:
        """Return the next message of a kind for which `holds`."""
        while True:
            head = self.stream.read(LENGTH.size)
            assert head, "the engine has ended"
            message = self._decoder.decode(self.stream.read(frame_length(head)))
            if isinstance(message, kind) and holds(message):
                return message

    def answers(self, *request_ids: int) -> dict[int, list[SequenceOutput]]:
        """Return the outputs of requests until all have finished."""
        outputs: dict[int, list[SequenceOutput]] = {request_id: [] for request_id in request_ids}
        while not all(parts and parts[-1].finish_reason for parts in outputs.values()):
            for output in self.receive(StepOutput).outputs:
                outputs[output.request_id].append(output)
        return outputs

    def close(self) -> None:
        self.stream.close()
        self._socket.close()
        self._thread.join(60)
        assert not self._thread.is_alive()

    def _serve(self) -> None:
        with self._engine_socket, contextlib.suppress(BrokenPipeError, ConnectionResetError):
            try:
                self._serve_parent(self._engine_socket)
            except SystemExit as end:
                self.exit_status = end.code


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """What the loop would end its process with, and no handler of logs afterwards."""
    statuses: list[int] = []
    threads = [*threading.enumerate()]
    handlers = [*logging.getLogger().handlers]
    monkeypatch.setattr(os, "_exit", statuses.append)
    monkeypatch.setattr(message_sender, "HEARTBEAT_SECONDS", 0.05)
    yield statuses
    for thread in {*threading.enumerate()} - {*threads}:
        if "_read_inbox" in thread.name:  # it ends the process
            thread.join(60)
    for handler in {*logging.getLogger().handlers} - {*handlers}:
        logging.getLogger().removeHandler(handler)


@pytest.fixture(params=[True, False], ids=["profiled", "not profiled"])
def engine(tiny_model_path: Path, ended: list[int], request: pytest.FixtureRequest) -> Iterator[EngineThread]:
    start = StartEngine(model_path=str(tiny_model_path), limits=LIMITS, num_threads=1, is_profiled=request.param)
    engine = EngineThread(start)
    yield engine
    engine.close()


def test_an_engine_reports_its_model_and_answers_requests(engine: EngineThread) -> None:
    ready = engine.receive(EngineReady)
    assert (ready.config.max_model_len, ready.kv_cache_dtype) == (256, "bfloat16")
    assert 0 < ready.kv_cache_bytes <= 2**18
    engine.receive(Heartbeat)
    prompt = [*ONE_AFTER_ANOTHER]
    letters = LLMatcher.grammar_from_regex("(ab){3}")
    engine.send(make_request(1, prompt, max_tokens=24))
    engine.send(make_request(2, prompt, max_tokens=24))
    engine.send(make_request(3, prompt, max_tokens=24, grammar=letters))
    first = engine.receive(BatchBegins)
    assert first.request_ids[0] == 1
    outputs = engine.answers(1, 2, 3)
    tokens = {number: [token for part in parts for token in part.token_ids] for number, parts in outputs.items()}
    assert tokens[1] == tokens[2]
    assert len(tokens[1]) == 24
    assert outputs[1][-1].finish_reason == "length"
    assert outputs[3][-1].finish_reason == "stop"


def test_snapshots_are_sent_while_they_are_wanted_and_an_aborted_request_leaves_them(engine: EngineThread) -> None:
    engine.receive(EngineReady)
    engine.send(make_request(7, [*ONE_AFTER_ANOTHER], max_tokens=200))
    engine.send(Subscribe(period_seconds=0.001))
    running = engine.receive(EngineSnapshot, lambda snapshot: bool(snapshot.running))
    assert running.running[0].request_id == 7
    assert sum(running.cell_states) > 0
    engine.send(make_request(9, [1], max_tokens=1))
    engine.receive(EngineSnapshot, lambda snapshot: any(9 in change.queued for change in snapshot.changes))
    engine.send(Abort(request_id=7))
    idle = engine.receive(EngineSnapshot, lambda snapshot: not snapshot.running)
    assert idle.stats.num_used_blocks == 0
    engine.send(Subscribe(period_seconds=0))
    engine.send(make_request(8, [*ONE_AFTER_ANOTHER], max_tokens=1))
    assert engine.answers(8)[8][-1].finish_reason == "length"


def test_log_records_of_the_engine_are_messages(engine: EngineThread) -> None:
    engine.receive(EngineReady)
    logging.getLogger("caravan.scheduler").warning("the pool is %s", "full")
    assert engine.receive(EngineLog) == EngineLog(level=logging.WARNING, text="the pool is full")


def test_packed_weights_are_written_after_the_start_and_mapped_by_the_next_engine(
    tiny_model_path: Path,
    ended: list[int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "caravan")
    cache = functools.partial(WeightsCache, environ={"XDG_CACHE_HOME": str(tmp_path)}, min_bytes=1)
    monkeypatch.setattr(loaded_model, "WeightsCache", cache)
    start = StartEngine(model_path=str(tiny_model_path), limits=LIMITS, num_threads=1, weights_cache_bytes=2**30)
    answers = []
    for loaded, later in (("were packed in", "were written to"), ("were mapped from", "")):
        engine = EngineThread(start)
        assert loaded in engine.receive(EngineLog).text
        engine.receive(EngineReady)
        if later:
            assert later in engine.receive(EngineLog).text
        engine.send(make_request(1, [*ONE_AFTER_ANOTHER], max_tokens=24, num_logprobs=1))
        outputs = engine.answers(1)[1]
        answers.append([(output.token_ids, output.logprobs) for output in outputs])
        engine.close()
    assert answers[0] == answers[1]


def test_a_model_that_cannot_be_loaded_is_reported_and_ends_the_process(tmp_path: Path, ended: list[int]) -> None:
    engine = EngineThread(StartEngine(model_path=str(tmp_path / "none.gguf")))
    assert "none.gguf" in engine.receive(EngineFailed).reason
    engine.close()
    assert engine.exit_status == 1


def test_an_error_of_a_compiler_is_reported_with_its_kind() -> None:
    sent: list[msgspec.Struct] = []
    sender = SimpleNamespace(send=sent.append)
    with pytest.raises(SystemExit), reported_failures(cast("MessageSender", sender)):
        raise subprocess.CalledProcessError(1, ["gcc"])
    assert sent == [EngineFailed(reason="CalledProcessError: Command '['gcc']' returned non-zero exit status 1.")]


@pytest.mark.parametrize(
    ("error", "is_permanent"),
    [
        (ValueError("The file is damaged."), True),
        (Shortage("The KV pool needs 8 bytes, but only 4 are free."), False),
        (FileNotFoundError("none.gguf"), False),
        (MemoryError("no memory"), False),
        (RuntimeError("a thread cannot be started"), False),
    ],
)
def test_only_a_fault_of_the_model_or_its_options_is_permanent(error: Exception, is_permanent: bool) -> None:
    sent: list[msgspec.Struct] = []
    sender = SimpleNamespace(send=sent.append)
    with pytest.raises(SystemExit), reported_failures(cast("MessageSender", sender)):
        raise error
    assert sent == [EngineFailed(reason=str(error), is_permanent=is_permanent)]


@pytest.fixture
def low_priority(ended: list[int], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What a standby does to the priority of its process."""
    changes: list[str] = []

    class RecordedPriority:
        def __init__(self) -> None:
            changes.append("lower")

        def end(self) -> None:
            changes.append("restore")

    monkeypatch.setattr(standby, "LowPriority", RecordedPriority)
    return changes


def test_a_standby_allocates_its_pool_and_answers_after_it_has_taken_over(
    tiny_model_path: Path, low_priority: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pools: list[int] = []
    monkeypatch.setattr(loaded_model, "free_memory_bytes", lambda **_: pools.append(1) or 2**30)  # type: ignore[func-returns-value]
    engine = EngineThread(StartEngine(model_path=str(tiny_model_path), limits=LIMITS, num_threads=1), standby.stand_by)
    engine.receive(EngineLoaded)
    assert (low_priority, len(pools)) == (["lower"], 1)  # asked once, whether the weights fit
    engine.send(TakeOver())
    ready = engine.receive(EngineReady)
    assert (low_priority, len(pools)) == (["lower", "restore"], 2)
    assert 0 < ready.kv_cache_bytes <= 2**18
    engine.receive(Heartbeat)
    engine.send(make_request(1, [*ONE_AFTER_ANOTHER], max_tokens=4))
    assert engine.answers(1)[1][-1].finish_reason == "length"
    engine.close()


def test_a_standby_takes_over_when_it_has_loaded_if_it_is_asked_before(
    tiny_model_path: Path, low_priority: list[str]
) -> None:
    engine = EngineThread(StartEngine(model_path=str(tiny_model_path), limits=LIMITS), standby.stand_by)
    engine.send(TakeOver())
    engine.receive(EngineLoaded)
    engine.receive(EngineReady)
    assert low_priority == ["lower", "restore"]
    engine.close()


def test_a_standby_whose_weights_do_not_fit_says_so(
    tiny_model_path: Path, low_priority: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loaded_model, "free_memory_bytes", lambda: 1000)
    engine = EngineThread(StartEngine(model_path=str(tiny_model_path), limits=LIMITS), standby.stand_by)
    reason = engine.receive(EngineFailed).reason
    assert re.fullmatch(r"The weights take [\d,]+ bytes, but only 1,000 are free. Lower --kv-cache-memory.", reason)
    engine.close()
    assert engine.exit_status == 1


def test_an_engine_whose_api_process_is_gone_ends_without_an_error(
    tmp_path: Path, ended: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    handled: list[int] = []
    monkeypatch.setattr(signal, "signal", lambda number, handler: handled.append(number))
    ours, theirs = socket.socketpair()
    with ours:
        ours.sendall(encode_frame(StartEngine(model_path=str(tmp_path / "none.gguf"))))
        ours.shutdown(socket.SHUT_RD)
        monkeypatch.setattr(sys, "argv", ["process", str(theirs.detach())])
        process.main()
    assert ended[0] == 0
    assert handled == [signal.SIGINT, signal.SIGTERM]


@pytest.mark.parametrize("max_step_seconds", [60.0, 0.2])
def test_a_loop_that_waits_or_is_stuck_in_a_step_sends_no_heartbeat(
    max_step_seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(message_sender, "HEARTBEAT_SECONDS", 0.01)
    monkeypatch.setattr(message_sender, "MAX_STEP_SECONDS", max_step_seconds)
    is_waiting, has_ended = threading.Event(), threading.Event()
    ours, theirs = socket.socketpair()
    ours.settimeout(0.3)

    def loop(sender: MessageSender) -> None:
        sender.start_heartbeats()
        while not is_waiting.is_set() and not has_ended.is_set():
            sum(range(1000))
        has_ended.wait()

    with ours, theirs:
        thread = threading.Thread(target=loop, args=(MessageSender(theirs),))
        thread.start()
        try:
            assert ours.recv(1024)
            if max_step_seconds == 60.0:
                is_waiting.set()
            with pytest.raises(TimeoutError):
                list(iter(lambda: ours.recv(1024), b""))
        finally:
            has_ended.set()
            thread.join()


@pytest.mark.slow
def test_an_engine_without_an_api_process_ends_silently(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(encode_frame(StartEngine(model_path=str(tmp_path / "none.gguf"))))
        ours.shutdown(socket.SHUT_RD)  # what the engine says now cannot be delivered
        engine = subprocess.run(
            [sys.executable, "-m", "caravan.scheduler.process", str(theirs.fileno())],
            pass_fds=(theirs.fileno(),),
            check=False,
            capture_output=True,
            timeout=60,
        )
    assert (engine.returncode, engine.stderr) == (0, b"")
