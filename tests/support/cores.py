"""The cores of the machine, shared between pytest's own processes."""

import os


def num_threads() -> int:
    """Return how many threads each of pytest's processes may use, and each server that it starts.

    Threads of several pools on one core wait for each other, in loops that take the core from those they wait for.
    """
    num_processes = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    return max(1, (os.cpu_count() or 1) // num_processes)
