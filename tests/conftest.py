"""Fixtures that several packages of tests share."""

from pathlib import Path

import pytest

from server.model_store import DEFAULT_MODEL, resolve_model
from tests.gguf_files import write_tiny_llama


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
