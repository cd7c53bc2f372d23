"""SIGHUP: the keys are read again; if the terminal was closed, the server ends."""

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

import caravan.cli.main
from caravan.__main__ import main
from caravan.server.http import early_hangup, hangup


@pytest.fixture(autouse=True)
def disposition() -> Iterator[None]:
    """What a test does about the signal is undone; the tests may be run by nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


async def called(monkeypatch: pytest.MonkeyPatch, *terminals: bool) -> list[str]:
    """Return what a signal calls; `terminals` says at each look whether there is one."""
    looks = iter(terminals)
    monkeypatch.setattr(hangup, "has_terminal", lambda: next(looks))
    calls: list[str] = []
    with hangup.on_hangup(lambda: calls.append("reload"), lambda: calls.append("end")):
        os.kill(os.getpid(), signal.SIGHUP)
        for _ in range(100):
            await asyncio.sleep(0.01)
            if calls:
                break
    return calls


@pytest.mark.parametrize(
    ("terminals", "expected"), [((False,), "reload"), ((True, True), "reload"), ((True, False), "end")]
)
async def test_a_hangup_ends_the_server_only_if_its_terminal_has_gone(
    terminals: tuple[bool, ...], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await called(monkeypatch, *terminals) == [expected]
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_DFL


async def test_a_hangup_never_ends_a_server_that_ignored_it(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = iter([True, False])
    monkeypatch.setattr(hangup, "has_terminal", lambda: next(looks))
    calls: list[str] = []
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    early_hangup.hold_hangups()
    with hangup.on_hangup(lambda: calls.append("reload"), lambda: calls.append("end")):
        os.kill(os.getpid(), signal.SIGHUP)
        while not calls:
            await asyncio.sleep(0.01)
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    assert calls == ["reload"]


@pytest.mark.parametrize("command", ["serve", "pull"])
def test_only_a_server_that_starts_remembers_hangups(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[object] = []
    monkeypatch.setattr("sys.argv", ["caravan", command])
    monkeypatch.setattr(caravan.cli.main, "main", lambda: found.append(signal.getsignal(signal.SIGHUP)))
    interrupt = signal.getsignal(signal.SIGINT)
    try:
        main()
    finally:
        signal.signal(signal.SIGINT, interrupt)
    assert (found != [signal.SIG_DFL]) == (command == "serve")


async def test_a_hangup_while_a_server_starts_reads_the_keys_again_when_it_can() -> None:
    calls: list[str] = []
    early_hangup.hold_hangups()
    with hangup.on_hangup(lambda: calls.append("none came"), lambda: calls.append("end")):
        pass
    os.kill(os.getpid(), signal.SIGHUP)
    with hangup.on_hangup(lambda: calls.append("reload"), lambda: calls.append("end")):
        pass
    assert calls == ["reload"]
    early_hangup.release_hangups()
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_DFL


def test_a_terminal_that_is_closed_ends_a_server_that_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = iter([True, False])
    ends: list[int] = []
    monkeypatch.setattr(early_hangup, "has_terminal", lambda: next(looks))
    monkeypatch.setattr(signal, "raise_signal", ends.append)
    early_hangup.hold_hangups()
    os.kill(os.getpid(), signal.SIGHUP)
    assert ends == [signal.SIGHUP]


def test_a_process_without_a_terminal_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []

    def open_terminal(path: str, flags: int) -> int:
        opened.append(path)
        if len(opened) > 1:
            raise OSError(6, "No such device or address")
        return os.dup(1)

    monkeypatch.setattr(os, "open", open_terminal)
    assert early_hangup.has_terminal()
    assert not early_hangup.has_terminal()
    assert opened == ["/dev/tty", "/dev/tty"]
