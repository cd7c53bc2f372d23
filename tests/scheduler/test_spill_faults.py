"""What goes wrong around the spill file of an engine: poisoned blocks, hung and slow disks, errors of the disk."""

import time
from pathlib import Path

import pytest

from caravan.model.spill_file import Found, SpillFile
from caravan.scheduler import prefix_reads
from caravan.scheduler.sequence import ScheduledSequence
from tests.scheduler.requests import make_request
from tests.support.engine_kinds import engine_of, random_prompt
from tests.support.spill_engines import Gate, spill_of, spilling_engine
from tests.support.tiny_llama import run_to_end
from tests.support.waiting import eventually

PROMPT = random_prompt(4, 100)


@pytest.fixture
def warm(tmp_path: Path) -> Path:
    """A file with the blocks of a prompt of 100 tokens."""
    with spilling_engine(tmp_path / "kv.blocks") as engine:
        run_to_end(engine, [make_request(0, PROMPT)])
    return tmp_path / "kv.blocks"


@pytest.mark.parametrize("kind", ["float32", "float32, overlapped"])
def test_a_poisoned_block_is_cleared_before_a_prefix_is_read_into_it(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = make_request(2, PROMPT, max_tokens=20)
    expected = run_to_end(engine_of(kind, block_size=16), [request])[2].token_ids
    with spilling_engine(tmp_path / "kv.blocks", kind) as engine:
        run_to_end(engine, [make_request(0, PROMPT)])
    with spilling_engine(tmp_path / "kv.blocks", kind) as engine:
        engine.add(make_request(1, random_prompt(9, 120), max_tokens=20))
        while not engine.step().outputs:
            pass
        spill, schedule = spill_of(engine), engine.scheduler.schedule
        assert spill is not None

        def schedule_and_wait(*, may_displace: bool = True) -> list[ScheduledSequence]:
            plan = schedule(may_displace=may_displace)
            if any(sequence.has_read_prefix for sequence in engine.scheduler.waiting):
                eventually(lambda: not spill._finished.empty())
            return plan

        monkeypatch.setattr(engine.scheduler, "schedule", schedule_and_wait)
        engine.add(request)
        engine.scheduler._fail(engine.scheduler.running[0], "not finite")
        num_poisoned = len(engine.scheduler.blocks.poisoned)
        token_ids: list[int] = []
        kinds: set[str] = set()
        while engine.has_work:
            output = engine.step()
            kinds |= {event.kind for event in output.events}
            token_ids += [token for one in output.outputs if one.request_id == 2 for token in one.token_ids]
    assert num_poisoned > 6, "the read gets poisoned blocks"
    assert "read" in kinds
    assert token_ids == expected


def test_a_prompt_that_needs_the_whole_pool_and_those_behind_it_do_not_wait_for_a_hung_disk(
    warm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch)
    monkeypatch.setattr(prefix_reads, "STUCK_SECONDS", 0.05)
    requests = [make_request(0, PROMPT), make_request(1, [1, 2, 3]), make_request(2, random_prompt(7, 60))]
    expected = run_to_end(engine_of("float32", block_size=16), requests)
    with spilling_engine(warm, num_blocks=9, max_model_len=130) as engine:
        assert run_to_end(engine, requests) == expected
        gate.open()


def test_a_block_that_a_disk_returns_too_late_does_not_reach_the_pool(
    warm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch)
    monkeypatch.setattr(prefix_reads, "STUCK_SECONDS", 0.05)
    with spilling_engine(warm) as engine:
        before = [row.copy() for row in engine.kv_cache.block_rows()]
        engine.add(make_request(0, PROMPT))
        engine.step()
        spill, pool = spill_of(engine), engine.scheduler.pool
        assert spill is not None
        engine.scheduler.abort(0)
        with spill._filling:  # a block is being filled
            time.sleep(0.1)
            engine.step()
            assert pool.num_free == pool.num_blocks - 6
        engine.step()
        assert pool.num_free == pool.num_blocks
        gate.open()
        eventually(lambda: not spill._finished.empty())
        for row, old in zip(engine.kv_cache.block_rows(), before, strict=True):
            assert (row == old).all()
        assert run_to_end(engine, [make_request(1, PROMPT)])[1].num_cached_tokens == 96, "the disk answers again"


def test_reads_that_wait_behind_others_are_not_given_up_while_the_disk_makes_progress(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = [make_request(number, random_prompt(number, 100)) for number in range(3)]
    with spilling_engine(tmp_path / "kv.blocks") as engine:
        run_to_end(engine, requests)
    read = SpillFile.read

    def read_slowly(file: SpillFile, block_hash: bytes, buffer: memoryview) -> Found:
        time.sleep(0.3)
        return read(file, block_hash, buffer)

    monkeypatch.setattr(SpillFile, "read", read_slowly)
    monkeypatch.setattr(prefix_reads, "STUCK_SECONDS", 3.0)  # of 5.4 s that the reads take
    with spilling_engine(tmp_path / "kv.blocks") as engine:
        found = run_to_end(engine, requests)
    assert [found[number].num_cached_tokens for number in range(3)] == [96, 96, 96]


def test_an_engine_that_had_an_error_leaves_the_file_to_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(5, "Input/output error")

    with spilling_engine(tmp_path / "kv.blocks") as engine:
        with monkeypatch.context() as patch:
            patch.setattr(SpillFile, "write", fail)
            run_to_end(engine, [make_request(0, PROMPT)])
            eventually(lambda: bool((spill := spill_of(engine)) and spill._is_off))
        with spilling_engine(tmp_path / "kv.blocks") as other:
            eventually(lambda: bool((spill := spill_of(other)) and spill._file.is_writer))
            run_to_end(other, [make_request(0, PROMPT)])
    with spilling_engine(tmp_path / "kv.blocks") as engine:
        assert run_to_end(engine, [make_request(0, PROMPT)])[0].num_cached_tokens == 96
