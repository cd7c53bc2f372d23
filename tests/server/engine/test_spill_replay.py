"""A spill file under engine processes that are killed: streams continue from it, and nothing changes."""

import random
from pathlib import Path

import msgspec
import pytest

from benchmarks.spill import KillReport, answer_to, kill_engines, measure_restarts, prompt_request, running_engine
from caravan.scheduler.config import EngineLimits
from caravan.scheduler.messages import StartEngine
from tests.support.extent import extent, is_full

pytestmark = pytest.mark.slow


@pytest.fixture
def start(tiny_model_path: Path) -> StartEngine:
    limits = EngineLimits(kv_cache_memory_bytes=2**20, max_model_len=256)
    return StartEngine(model_path=str(tiny_model_path), dtype="float32", num_threads=1, limits=limits)


@pytest.fixture
def spilled(start: StartEngine, tmp_path: Path) -> StartEngine:
    return msgspec.structs.replace(start, kv_spill_bytes=2**24, kv_spill_path=str(tmp_path / "kv.blocks"))


@pytest.fixture(autouse=True)
def small_vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.spill.VOCABULARY", 200)
    monkeypatch.setattr("benchmarks.spill.WRITING_SECONDS", 0.5)


async def test_a_restarted_engine_gives_the_same_bits(start: StartEngine, spilled: StartEngine) -> None:
    seconds = await measure_restarts(start, spilled, 100, 1)
    assert [len(values) for values in seconds.values()] == [1, 1]


async def test_threat_34_a_file_that_is_damaged_while_engines_are_killed_changes_no_answer(
    spilled: StartEngine,
) -> None:
    path, dice = Path(spilled.kv_spill_path), random.Random(1)
    request = prompt_request(5, 100, 40)
    async with running_engine(spilled) as client:
        expected, _ = await answer_to(client, request)
    for _ in range(3):
        damage(path, dice)
        async with running_engine(spilled) as client:
            assert (await answer_to(client, request))[0] == expected


def damage(path: Path, dice: random.Random) -> None:
    contents = bytearray(path.read_bytes())
    num_used = len(contents.rstrip(b"\0"))
    for _ in range(200):
        contents[dice.randrange(num_used)] ^= 1 << dice.randrange(8)
    path.write_bytes(contents[: dice.randrange(num_used, len(contents))])


async def test_streams_of_a_killed_engine_are_read_instead_of_computed(
    start: StartEngine, spilled: StartEngine
) -> None:
    num_kills = extent(3, 2)
    bodies = [prompt_request(index, 100, 120) for index in range(4)]
    reports: list[KillReport] = []
    for options in (spilled, start) if is_full() else (spilled,):
        reports.append(await kill_engines(options, bodies, num_kills, seed=1))
        assert (reports[-1].num_kills, reports[-1].num_wrong) == (num_kills, 0)
        assert reports[-1].num_answers >= 4
        assert reports[-1].num_replayed > 0
    shares = [report.num_recomputed_tokens / report.num_replayed_tokens for report in reports]
    assert shares[0] < 0.5, "blocks that were not written yet are few"
    assert all(share > 0.9 for share in shares[1:]), "without the file nearly all"
