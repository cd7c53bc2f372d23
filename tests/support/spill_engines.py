"""Tiny engines with a spill file."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from caravan.model.llama import Llama
from caravan.model.spill_file import Found, SpillFile
from caravan.model.spill_header import SpillKey
from caravan.model.weights_header import WeightsKey
from caravan.scheduler.block_spill import BlockSpill
from caravan.scheduler.engine import Engine
from caravan.scheduler.messages import SpillCounts, StepOutput
from caravan.scheduler.spilling_blocks import SpillingBlocks, use_spill
from tests.support.engine_kinds import engine_of

SIZE = 2**20

KEY = SpillKey(
    weights=WeightsKey(files=[], tensors="", quantization="none", dtype="float32", code="", libraries={}, features={}),
    backend="",
    environment={},
    kv_dtype="float32",
    block_size=16,
    max_model_len=256,
    scheduler="",
)


def other_key(**changes: Any) -> SpillKey:
    return msgspec.structs.replace(KEY, **changes)


@contextmanager
def spilling_engine(
    path: Path,
    kind: str = "float32",
    *,
    key: SpillKey | None = None,
    num_bytes: int = SIZE,
    model: Llama | None = None,
    **limits: Any,
) -> Iterator[Engine]:
    """Yield an engine with a spill file at `path`; what it was to write is written when the block ends."""
    engine = engine_of(kind, model, **{"block_size": 16} | limits)
    rows = engine.kv_cache.block_rows()
    block_bytes = sum(row.shape[1] for row in rows)
    file = SpillFile(path, key or other_key(backend=kind), "/model", block_bytes, num_bytes, is_in_cache=True)
    spill = BlockSpill(file, rows, engine.scheduler.pool)
    use_spill(engine.scheduler, spill)
    spill.start()
    try:
        yield engine
    finally:
        spill.close()


def spill_of(engine: Engine) -> BlockSpill | None:
    """Return the spill file of an engine, None if it has none."""
    blocks = engine.scheduler.blocks
    return blocks.spill if isinstance(blocks, SpillingBlocks) else None


class Counted:
    """Sums up what happened to the spill file in the steps of a run."""

    def __init__(self) -> None:
        self.total = SpillCounts()

    def __call__(self, output: StepOutput) -> None:
        assert output.stats.spill is not None
        now = output.stats.spill
        for name in ("num_written", "num_read", "num_dropped", "num_damaged"):
            now = msgspec.structs.replace(now, **{name: getattr(self.total, name) + getattr(now, name)})
        self.total = now


class Gate:
    """Holds the reads of a spill file until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._event = threading.Event()
        read = SpillFile.read

        def wait_and_read(file: SpillFile, block_hash: bytes, buffer: memoryview) -> Found:
            self._event.wait(60)
            return read(file, block_hash, buffer)

        monkeypatch.setattr(SpillFile, "read", wait_and_read)

    def open(self) -> None:
        self._event.set()
