"""The spill file of an engine: blocks that outlive it, and the same bits with and without them."""

from pathlib import Path

import pytest

from tests.scheduler.test_determinism import sampled, solo
from tests.support.engine_kinds import KINDS, random_prompt
from tests.support.spill_engines import Counted, spilling_engine
from tests.support.tiny_llama import run_to_end

POOLS = [*KINDS, *(f"{kind}, int8 pool" for kind in ("bfloat16", "float32 attention", "none", "int8"))]


@pytest.mark.parametrize("kind", POOLS)
def test_the_next_engine_reads_the_prefix_and_gives_the_same_bits(kind: str, tmp_path: Path) -> None:
    request = sampled(0, random_prompt(5, 100))
    expected = solo(kind, request)
    with spilling_engine(tmp_path / "kv.blocks", kind) as engine:
        assert run_to_end(engine, [request])[0] == expected
    counted = Counted()
    with spilling_engine(tmp_path / "kv.blocks", kind) as engine:
        again = run_to_end(engine, [request], on_step=counted)[0]
    assert again == expected
    assert again.num_cached_tokens == 96
    assert (counted.total.num_read, counted.total.num_damaged) == (6, 0)
