"""Fixtures that several packages of tests share."""

import gc
import os
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from caravan.download.resolve import DEFAULT_MODEL, resolve_model
from tests.support.gguf_files import write_tiny_llama


def pytest_configure() -> None:
    """Share the cores between pytest's own processes: threads of several pools on one core wait for each other."""
    # A deadline for each example would judge how busy the machine is; tests marked `timing` judge seconds.
    settings.register_profile("caravan", deadline=None)
    settings.load_profile("caravan")
    num_processes = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // num_processes))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run files with slow tests first, so that no process waits for another's last one."""
    slow = {item.path for item in items if any(map(item.get_closest_marker, ("slow", "real_model", "docker")))}
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
