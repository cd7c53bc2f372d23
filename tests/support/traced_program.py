"""Run `caravan` or its engine, and record which modules of ours run between two signals.

`python -m tests.support.traced_program FOLDER caravan serve ...`: SIGUSR1 starts the recording, SIGUSR2 ends it and
writes the modules' paths to a file in FOLDER, a line each.
"""

import os
import runpy
import signal
import sys
import threading
from pathlib import Path
from types import CodeType, FrameType

ROOT = Path(__file__).parents[2]
PARTS = {"caravan", "server", "scheduler", "model"}


class Recorder:
    """Collects the files of the functions that run while it is on."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._is_on = False
        self._codes: set[CodeType] = set()

    def profile(self, frame: FrameType, event: str, _: object) -> None:
        """Take in a call; see sys.setprofile."""
        if self._is_on and event == "call":
            self._codes.add(frame.f_code)

    def start(self, *_: object) -> None:
        """Begin to record."""
        self._is_on = True

    def end(self, *_: object) -> None:
        """Write what was recorded."""
        self._is_on = False
        files = {Path(code.co_filename).resolve() for code in self._codes}
        relative = (path.relative_to(ROOT) for path in files if path.is_relative_to(ROOT))
        ours = sorted(str(path) for path in relative if path.parts[0] in PARTS)
        target = self._folder / f"{os.getpid()}.txt"
        target.with_suffix(".part").write_text("\n".join(ours))
        target.with_suffix(".part").rename(target)


def main() -> None:
    """Run the module that is named after the folder, with the arguments after it."""
    folder, module = sys.argv[1:3]
    recorder = Recorder(Path(folder))
    signal.signal(signal.SIGUSR1, recorder.start)
    signal.signal(signal.SIGUSR2, recorder.end)
    if module == "caravan":
        import caravan.server.engine.process as process

        process.ENGINE_PROGRAM = ("-P", "-m", "tests.support.traced_program", folder, "caravan.scheduler.process")
    threading.setprofile(recorder.profile)
    sys.setprofile(recorder.profile)
    sys.argv = sys.argv[2:]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
