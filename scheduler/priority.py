"""Low priority: for the work of an engine process for which nobody waits."""

import contextlib
import logging
import os
import threading
from pathlib import Path

NICE = 10  # a tenth of the processor time of others, if they need all; with 19 a model may take minutes to load
FIRST_TO_KILL = 1000  # the highest badness: a process of this kind is killed before all others if memory is short
RETRY_SECONDS = 0.15  # Linux lets all processes together set a nice value of a session each 0.1 s
_PROC = Path("/proc/self")

logger = logging.getLogger(__name__)


class LowPriority:
    """A process that gets little processor time while others need it, and that is killed first.

    Two numbers are changed that any process may change back (sched(7), proc(5)): the nice value of the session, which
    has an effect where Linux groups processes by session, and the score for processes to kill when memory is short. A
    thread's own nice value cannot be lowered again without privileges (see `lower_thread_priority`).
    """

    def __init__(self, proc: Path = _PROC) -> None:
        """Lower the priority; does nothing where the system has no such files."""
        self._autogroup, self._oom_score = proc / "autogroup", proc / "oom_score_adj"
        self._former_score = ""
        with contextlib.suppress(OSError):
            self._autogroup.write_text(f"{NICE}")
        with contextlib.suppress(OSError):
            self._former_score = self._oom_score.read_text()
            self._oom_score.write_text(f"{FIRST_TO_KILL}")

    def end(self) -> None:
        """Restore the priority of the process."""
        self._restore_autogroup()
        if self._former_score:
            with contextlib.suppress(OSError):
                self._oom_score.write_text(self._former_score)

    def _restore_autogroup(self, num_tries: int = 10) -> None:
        """Reset the nice value of the session; again later if another one was set in this tenth of a second."""
        try:
            self._autogroup.write_text("0")
        except BlockingIOError:
            if num_tries > 1:
                later = threading.Timer(RETRY_SECONDS, self._restore_autogroup, (num_tries - 1,))
                later.daemon = True
                later.start()
            else:
                logger.warning("The priority of the engine could not be restored.")
        except OSError:
            pass


def lower_thread_priority(nice: int = NICE) -> None:
    """Lower the priority of the calling thread and of those that it starts; other threads keep theirs.

    Only on Linux: elsewhere a nice value is that of the process. A value that is higher already stays.
    """
    if hasattr(os, "sched_setaffinity"):  # Linux
        thread = threading.get_native_id()
        os.setpriority(os.PRIO_PROCESS, thread, max(nice, os.getpriority(os.PRIO_PROCESS, thread)))
