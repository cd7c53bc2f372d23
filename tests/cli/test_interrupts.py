"""Ctrl-C while a command starts: no output, and exit status 130."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from caravan.cli.interrupts import end_at_interrupt, interruptible, raise_at_interrupt

pytestmark = pytest.mark.slow

MOMENTS = (0.0, 0.1, 0.2, 0.3, 0.5, 0.8, 1.2, 2.0, 3.0, 4.5, 6.0)  # seconds after the command has said what Ctrl-C does
COMMAND = """
import os, runpy, signal, sys

def announce(*arguments):
    before = set_handler(*arguments)
    if arguments[0] == signal.SIGINT:
        signal.signal = set_handler
        os.close(announced)
    return before

set_handler, signal.signal, announced = signal.signal, announce, int(sys.argv.pop(1))
runpy.run_module("caravan", run_name="__main__")
"""


def started(*words: str, **options: Any) -> "subprocess.Popen[str]":
    """Start `python -m caravan`; return when it has set what Ctrl-C does, before which Python has a message for it."""
    reading, writing = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND, str(writing), *words],
        process_group=0,
        pass_fds=[writing],
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )
    os.close(writing)
    os.read(reading, 1)  # its end: the other side is closed
    os.close(reading)
    return process


@pytest.mark.parametrize("seconds", MOMENTS)
def test_ctrl_c_is_silent_at_every_moment_of_a_start(seconds: float, tiny_model_path: Path) -> None:
    options = ["--port", "0", "--kv-cache-memory", "4MiB"]
    process = started("serve", str(tiny_model_path), *options, stdout=subprocess.PIPE)
    time.sleep(seconds)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    shown, complaints = process.communicate(timeout=30)
    if "\nReady " in shown:  # the start was faster, so the log has lines
        assert {json.loads(line)["level"] for line in complaints.splitlines()} <= {"info"}
        complaints = ""
    assert (process.returncode, complaints) == (130, "")


@pytest.mark.parametrize("seconds", [0.3, 1.5])
def test_ctrl_c_while_a_chat_starts_its_server_ends_both(seconds: float, tiny_model_path: Path, tmp_path: Path) -> None:
    process = started(
        "chat",
        str(tiny_model_path),
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        env=os.environ | {"TMPDIR": str(tmp_path)},
    )
    time.sleep(seconds)
    os.killpg(process.pid, signal.SIGINT)
    _, complaints = process.communicate(timeout=30)
    assert process.returncode == 130
    assert complaints in ("", f"Starting {tiny_model_path} ...\n")
    assert [*tmp_path.iterdir()] == []


def test_an_interrupt_raises_an_exception_where_a_command_has_something_to_end() -> None:
    before = signal.getsignal(signal.SIGINT)
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        end_at_interrupt()
        at_once = signal.getsignal(signal.SIGINT)
        assert at_once is not signal.default_int_handler
        with pytest.raises(KeyboardInterrupt), interruptible():
            signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is at_once
        raise_at_interrupt()
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_an_ignored_interrupt_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        end_at_interrupt()
        with interruptible():
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
