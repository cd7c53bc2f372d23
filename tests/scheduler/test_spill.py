"""The spill file of an engine: blocks that outlive it, and the same bits with and without them."""

import contextlib
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from caravan.model.spill_file import Found, SpillFile
from caravan.scheduler import block_spill, prefix_reads
from caravan.scheduler.engine import Engine
from caravan.scheduler.messages import Request, SequenceEvent, StepOutput
from tests.scheduler.requests import make_request
from tests.support.engine_kinds import engine_of, random_prompt
from tests.support.spill_engines import Counted, Gate, other_key, spill_of, spilling_engine
from tests.support.tiny_llama import Transcript, run_to_end
from tests.support.waiting import eventually

POOLS = ["float32", "bfloat16", "float32 attention", "none", "int8", "int4"]
POOLS += [f"{kind}, int8 pool" for kind in ("bfloat16", "float32 attention", "none", "int8")]
PROMPT = random_prompt(4, 100)


def sampled(request_id: int, prompt: list[int], max_tokens: int = 12) -> Request:
    return make_request(request_id, prompt, temperature=0.9, seed=request_id, num_logprobs=3, max_tokens=max_tokens)


def solo(kind: str, request: Request) -> Transcript:
    """Return what a request gets alone, in an engine without a file."""
    return run_to_end(engine_of(kind, block_size=16), [request])[request.request_id]


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


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(draw=st.data())
def test_a_crowded_pool_with_a_small_file_gives_the_same_bits(draw: st.DataObject, tmp_path: Path) -> None:
    path = tmp_path / "kv.blocks"
    path.unlink(missing_ok=True)
    stem = random_prompt(0, 60)
    requests = []
    for request_id in range(draw.draw(st.integers(1, 6))):
        own = random_prompt(draw.draw(st.integers(1, 5)), draw.draw(st.integers(1, 40)))
        requests.append(sampled(request_id, stem[: draw.draw(st.integers(0, 60))] + own, max_tokens=20))
    expected = {request.request_id: solo("float32", request) for request in requests}
    num_bytes = draw.draw(st.sampled_from([48 * 1024, 2**20]))
    for _ in range(3):
        limits: dict[str, Any] = {"num_blocks": draw.draw(st.sampled_from([32, 16, 9])), "max_model_len": 130}
        limits["max_batch_tokens"] = draw.draw(st.sampled_from([7, 33, 256]))
        with spilling_engine(path, num_bytes=num_bytes, block_size=16, **limits) as engine:
            together = run_to_end(engine, requests, arrive_every=draw.draw(st.integers(0, 3)))
        assert together == expected
        assert path.stat().st_size <= num_bytes


@pytest.mark.parametrize("kind", ["float32", "none", "int8, int8 pool"])
@pytest.mark.parametrize("seed", range(12))
def test_a_damaged_file_costs_time_and_changes_no_answer(kind: str, seed: int, tmp_path: Path) -> None:
    dice = random.Random(seed)
    path = tmp_path / "kv.blocks"
    requests = [sampled(i, random_prompt(i, 70), max_tokens=20) for i in range(4)]
    expected = {request.request_id: solo(kind, request) for request in requests}
    with spilling_engine(path, kind) as engine:
        assert run_to_end(engine, requests) == expected
    is_running = seed % 2 == 0  # else it is damaged between two engines
    with spilling_engine(path, kind) if is_running else contextlib.nullcontext() as engine:
        contents = bytearray(path.read_bytes())
        used = len(contents.rstrip(b"\0"))
        for _ in range(30):
            contents[dice.randrange(used)] ^= 1 << dice.randrange(8)
        path.write_bytes(contents[: dice.choice([used, dice.randrange(used), 0]) if seed % 3 == 0 else None])
        if engine is not None:
            assert run_to_end(engine, requests) == expected
    with spilling_engine(path, kind) as engine:
        assert run_to_end(engine, requests) == expected
    with spilling_engine(path, kind, key=other_key(backend="other")) as engine:
        counted = Counted()
        assert run_to_end(engine, requests, on_step=counted) == expected
        assert (counted.total.num_read, counted.total.num_damaged) == (0, 0)


def test_an_engine_that_resumes_a_request_computes_less_than_a_block_again(tmp_path: Path) -> None:
    path = tmp_path / "kv.blocks"
    request = sampled(0, random_prompt(6, 40), max_tokens=60)
    whole = solo("float32", request)
    with spilling_engine(path) as engine:
        run_to_end(engine, [request])
    resumed = msgspec.structs.replace(request, output_token_ids=whole.token_ids[:50])
    steps: list[StepOutput] = []
    with spilling_engine(path) as engine:
        rest = run_to_end(engine, [resumed], on_step=steps.append)[0]
    assert (rest.token_ids, rest.logprobs) == (whole.token_ids[50:], whole.logprobs[50:])
    assert sum(step.stats.num_prefill_tokens for step in steps) == 90 - 80


def test_threat_34_prefixes_of_another_salt_are_not_found(tmp_path: Path) -> None:
    path = tmp_path / "kv.blocks"
    prompt = random_prompt(1, 50)
    with spilling_engine(path) as engine:
        run_to_end(engine, [make_request(0, prompt, salt="ann\n")])
    with spilling_engine(path) as engine:
        transcripts = run_to_end(engine, [make_request(0, prompt, salt="bob\n"), make_request(1, prompt, salt="ann\n")])
    assert (transcripts[0].num_cached_tokens, transcripts[1].num_cached_tokens) == (0, 48)


def test_two_engines_share_a_file_and_the_second_writes_when_the_first_has_ended(tmp_path: Path) -> None:
    path = tmp_path / "kv.blocks"
    prompts = [random_prompt(seed, 50) for seed in range(3)]
    with contextlib.ExitStack() as both:
        first = both.enter_context(contextlib.ExitStack())
        one = first.enter_context(spilling_engine(path))
        run_to_end(one, [make_request(0, prompts[0])])
        with spilling_engine(path) as two:
            assert run_to_end(two, [make_request(0, prompts[0])])[0].num_cached_tokens == 48
            run_to_end(two, [make_request(1, prompts[1])])  # a reader does not write
            first.close()
            time.sleep(2.5 * block_spill.REFRESH_SECONDS)
            run_to_end(two, [make_request(2, prompts[2])])
    with spilling_engine(path) as three:
        found = run_to_end(three, [make_request(seed, prompt) for seed, prompt in enumerate(prompts)])
    assert [found[seed].num_cached_tokens for seed in range(3)] == [48, 0, 48]


@pytest.fixture
def warm(tmp_path: Path) -> Path:
    """A file with the blocks of a prompt of 100 tokens."""
    with spilling_engine(tmp_path / "kv.blocks") as engine:
        run_to_end(engine, [make_request(0, PROMPT)])
    return tmp_path / "kv.blocks"


def test_other_streams_go_on_while_a_prefix_is_read(warm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(monkeypatch)
    with spilling_engine(warm) as engine:
        engine.add(make_request(1, random_prompt(9, 20), max_tokens=40))
        engine.step()
        for request_id in (2, 3):
            engine.add(make_request(request_id, PROMPT))
        steps = [engine.step() for _ in range(10)]
        assert all([one.request_id for one in step.outputs] == [1] for step in steps)
        waits = {(event.request_id, event.reason) for step in steps for event in step.events}
        assert waits == {(2, "prefix being read"), (3, "prefix being computed")}
        gate.open()
        seen: list[SequenceEvent] = []
        transcripts = run_rest(engine, [1, 2, 3], seen)
    assert [(event.request_id, event.num_tokens) for event in seen if event.kind == "read"] == [(2, 96)]
    assert [(event.request_id, event.num_tokens) for event in seen if event.kind == "join"] == [(2, 96), (3, 96)]
    assert transcripts[2] == transcripts[3] == run_to_end(engine_of("float32"), [make_request(0, PROMPT)])[0].token_ids


def run_rest(engine: Engine, request_ids: list[int], seen: list[SequenceEvent]) -> dict[int, list[int]]:
    """Return the tokens that requests get from now on, and add the events to `seen`."""
    tokens: dict[int, list[int]] = {request_id: [] for request_id in request_ids}
    while engine.has_work:
        step = engine.step()
        seen += step.events
        for output in step.outputs:
            tokens[output.request_id] += output.token_ids
        engine.scheduler.pool.check()
    return tokens


def test_a_request_that_is_aborted_while_its_prefix_is_read_leaves_the_prefix_in_the_cache(
    warm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch)
    with spilling_engine(warm) as engine:
        engine.add(make_request(1, PROMPT))
        engine.step()
        engine.scheduler.abort(1)
        gate.open()
        while engine.scheduler.pool.num_free < engine.scheduler.pool.num_blocks:
            engine.step()
        assert run_to_end(engine, [make_request(2, PROMPT)])[2].num_cached_tokens == 96


def test_nobody_waits_for_a_disk_that_is_stuck(warm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(monkeypatch)
    monkeypatch.setattr(prefix_reads, "STUCK_SECONDS", 0.05)
    with spilling_engine(warm) as engine:
        engine.add(make_request(1, PROMPT))
        seen: list[SequenceEvent] = []
        assert (
            run_rest(engine, [1], seen)[1] == run_to_end(engine_of("float32"), [make_request(0, PROMPT)])[0].token_ids
        )
        pool = engine.scheduler.pool
        assert pool.num_free == pool.num_blocks, "its blocks were given back"
        other = make_request(2, PROMPT[:50] + random_prompt(8, 40))
        engine.add(other)
        assert run_rest(engine, [2], seen)[2] == run_to_end(engine_of("float32"), [other])[2].token_ids
        gate.open()
        assert "read" not in {event.kind for event in seen}


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), ValueError("a mistake")])
def test_after_an_error_the_engine_goes_on_without_the_file(
    warm: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    def fail(*_: Any) -> None:
        raise error

    requests = [make_request(i, random_prompt(i, 50)) for i in range(4)]
    with spilling_engine(warm) as engine:
        monkeypatch.setattr(SpillFile, "write", fail)
        counted = Counted()
        assert run_to_end(engine, requests, on_step=counted) == run_to_end(engine_of("float32"), requests)
        eventually(lambda: bool(caplog.messages))
        assert run_to_end(engine, [make_request(9, PROMPT)], on_step=counted)[9].num_cached_tokens == 0
    assert len(caplog.messages) == 1
    assert f"The spill file {warm} is not used any more" in caplog.messages[0]
    assert counted.total.num_dropped > 0
    assert (counted.total.used_bytes, counted.total.free_bytes) == (0, 0)


def test_a_read_that_fails_lets_its_request_compute(
    warm: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any) -> Found:
        time.sleep(0.05)  # another one is asked for meanwhile
        raise ValueError("a mistake")

    monkeypatch.setattr(SpillFile, "read", fail)
    with spilling_engine(warm) as engine:
        requests = [make_request(1, PROMPT), make_request(2, PROMPT[:60])]
        assert run_to_end(engine, requests) == run_to_end(engine_of("float32"), requests)
    assert len(caplog.messages) == 1


def test_blocks_that_are_evicted_before_they_are_copied_are_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = [make_request(i, random_prompt(i, 50)) for i in range(8)]
    may_write = threading.Event()
    write = SpillFile.write

    def wait_and_write(file: SpillFile, block_hash: bytes, block: memoryview) -> None:
        may_write.wait(60)
        write(file, block_hash, block)

    monkeypatch.setattr(SpillFile, "write", wait_and_write)
    expected = run_to_end(engine_of("float32"), requests)
    with spilling_engine(tmp_path / "kv.blocks", num_blocks=8, max_model_len=64) as engine:
        counted = Counted()
        assert run_to_end(engine, requests, on_step=counted) == expected
        may_write.set()
        spill = spill_of(engine)
        assert spill is not None
        eventually(spill._inbox.empty)
        counted(engine.step())
    assert counted.total.num_dropped > 0
    with spilling_engine(tmp_path / "kv.blocks") as engine:
        assert run_to_end(engine, requests) == expected


def test_more_blocks_than_may_wait_are_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block_spill, "MAX_WAITING", 0)
    counted = Counted()
    with spilling_engine(tmp_path / "kv.blocks") as engine:
        run_to_end(engine, [make_request(0, PROMPT)], on_step=counted)
        engine.step()
        run_to_end(engine, [make_request(1, PROMPT)], on_step=counted)
    assert (counted.total.num_written, counted.total.num_dropped) == (0, 6)


def test_a_copy_during_which_a_block_leaves_the_cache_is_not_used(tmp_path: Path) -> None:
    with spilling_engine(tmp_path / "kv.blocks") as engine:
        spill = spill_of(engine)
        assert spill is not None
        run_to_end(engine, [make_request(0, PROMPT)])
        eventually(spill._inbox.empty)
        pool = engine.scheduler.pool
        block_hash = next(iter(pool._block_of))
        block = pool.lookup(block_hash)
        assert block is not None
        assert spill._copy(block_hash, block)
        assert not spill._copy(block_hash, block + 1)

        class Forgetful(list[Any]):
            def __iter__(self) -> Iterator[Any]:
                pool.num_forgotten += 1
                return super().__iter__()

        spill._parts = Forgetful(spill._parts)
        assert not spill._copy(block_hash, block)


def test_blocks_of_a_sequence_whose_numbers_were_not_finite_leave_the_file(
    warm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with spilling_engine(warm) as engine:
        engine.add(make_request(1, PROMPT, max_tokens=20))
        while not engine.step().outputs:
            pass
        engine.scheduler._fail(engine.scheduler.running[0], "not finite")
        spill = spill_of(engine)
        assert spill is not None
        again = run_to_end(engine, [make_request(2, PROMPT)])[2]
        assert again.num_cached_tokens == 0
        assert again == run_to_end(engine_of("float32"), [make_request(2, PROMPT)])[2]
    with spilling_engine(warm) as engine:
        assert run_to_end(engine, [make_request(1, PROMPT)])[1].num_cached_tokens == 96


def test_a_block_in_the_middle_of_a_prefix_is_read_alone(warm: Path) -> None:
    with spilling_engine(warm) as engine:
        expected = run_to_end(engine, [make_request(1, PROMPT)])[1]
        pool = engine.scheduler.pool
        third = [*pool._hash_of][2]
        pool._num_cached -= 1
        pool.forget(third)
        counted = Counted()
        again = run_to_end(engine, [make_request(2, PROMPT)], on_step=counted)[2]
    assert again == expected
    assert (again.num_cached_tokens, counted.total.num_read) == (96, 1)


def test_hits_in_the_cache_keep_a_prefix_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "kv.blocks"
    counted = Counted()
    with spilling_engine(path, num_bytes=160_000, num_blocks=60) as engine:
        for number in range(12):
            run_to_end(
                engine, [make_request(number, PROMPT), make_request(99, random_prompt(number, 80))], on_step=counted
            )
    assert counted.total.free_bytes == 0, "others were evicted"
    with spilling_engine(path, num_bytes=160_000) as engine:
        assert run_to_end(engine, [make_request(0, PROMPT)])[0].num_cached_tokens == 96
