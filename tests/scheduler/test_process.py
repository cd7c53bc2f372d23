"""The engine process by itself, at the other end of a socket."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from caravan.scheduler.channel import encode_frame
from caravan.scheduler.messages import StartEngine

pytestmark = pytest.mark.slow


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
