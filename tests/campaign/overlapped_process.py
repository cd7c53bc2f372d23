"""An engine process whose steps overlap, on a device that is a thread: for campaigns without a GPU.

Started as `python -m tests.campaign.overlapped_process FD`, in place of scheduler/process.py.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from unittest.mock import patch

from caravan.scheduler import process
from caravan.scheduler.overlap import Pending
from caravan.scheduler.overlapped_engine import OverlappedEngine
from caravan.scheduler.sampling_launch import HostSampler


def main() -> None:
    """Serve as an engine process on a CPU does, with overlapped steps."""
    device = ThreadPoolExecutor(1, "device")

    def submit(work: Callable[[], Pending]) -> Pending:
        return device.submit(lambda: work().result())

    def make_engine(*arguments: Any) -> OverlappedEngine:
        model, config, kv_dtype, cpu, profile, grammars, draft_model = arguments
        more = {"profile": profile, "grammars": grammars, "draft_model": draft_model}
        return OverlappedEngine(model, config, kv_dtype, cpu, HostSampler(), submit=submit, **more)

    with patch("caravan.scheduler.loaded_model.Engine", make_engine):
        process.main()


if __name__ == "__main__":
    main()
