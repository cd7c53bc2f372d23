"""Fixtures that several packages of tests share."""

import gc
import signal
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from caravan.download.resolve import DEFAULT_MODEL, resolve_model
from tests.support.cores import num_threads
from tests.support.gguf_files import write_tiny_llama
from tests.support.kernel_builds import NAMES, obstacle
from tests.support.leaks import pytest_runtest_teardown

__all__ = ["pytest_runtest_teardown"]  # a hook

TIMING = "timing"  # a marker, and an expression that wants it
SLOW = ("slow", "real_model", "docker", "prometheus", "browser")  # markers


def pytest_configure() -> None:
    """Share the cores between pytest's own processes, and have signals mean what they mean in a terminal."""
    # A shell has what it starts in the background ignore them, and so does nohup; all processes below would, too.
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
    # A deadline for each example would judge how busy the machine is; tests marked `timing` judge seconds.
    settings.register_profile("caravan", deadline=None)
    settings.load_profile("caravan")
    torch.set_num_threads(num_threads())


def pytest_report_header() -> list[str]:
    """Name the builds of the kernels that are not tested on this machine, and why."""
    reasons = {name: obstacle(name) for name in NAMES}
    return [f"kernels: {name} is not tested: {reason}" for name, reason in reasons.items() if reason is not None]


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Import only the files that name the marker, where only the tests that judge seconds are wanted."""
    is_file = collection_path.suffix == ".py" and config.option.markexpr == TIMING
    return True if is_file and TIMING not in collection_path.read_text() else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run files with slow tests first, so that no process waits for another's last one."""
    slow = {item.path for item in items if any(map(item.get_closest_marker, SLOW))}
    items.sort(key=lambda item: item.path not in slow)


def pytest_collection_finish() -> None:
    """Have the garbage collector pass over all that was imported: it looks at it again and again otherwise."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def real_model_path() -> Path:
    """The default model, fetched once into the user's cache."""
    return resolve_model(DEFAULT_MODEL, print)


@pytest.fixture(scope="session")
def tiny_model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of a few hundred kilobytes with a byte-level vocabulary and a chat template."""
    path = tmp_path_factory.mktemp("model") / "tiny.gguf"
    write_tiny_llama(path)
    return path
