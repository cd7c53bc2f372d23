"""An engine whose steps overlap, on a device that computes as late as possible, against the serial engine."""

import logging
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from caravan.model.sampling.sample import Sample
from caravan.model.sampling.sampler import FindMasks, SamplingRow
from caravan.scheduler.config import EngineConfig
from caravan.scheduler.engine import Engine
from caravan.scheduler.messages import Request, StepOutput
from caravan.scheduler.overlapped_engine import OverlappedEngine, enqueue
from caravan.scheduler.sampling_launch import HostSampler
from tests.scheduler.requests import make_request
from tests.support.engine_kinds import engine_of, model_in, random_prompt
from tests.support.fake_device import FakeDevice
from tests.support.tiny_llama import Transcript, run_to_end, tiny_engine, tiny_llama

LIMITS: dict[str, Any] = {"max_model_len": 96, "block_size": 16}


def overlapped(**limits: Any) -> tuple[OverlappedEngine, FakeDevice]:
    device = FakeDevice()
    engine = tiny_engine(model_in("float32"), fake_device=device, **LIMITS | limits)
    assert isinstance(engine, OverlappedEngine)
    return engine, device


def serial(requests: list[Request], **limits: Any) -> dict[int, Transcript]:
    return run_to_end(engine_of("float32", **LIMITS | limits), requests)


def plain_requests(num: int = 6, **params: Any) -> list[Request]:
    defaults = {"temperature": 0.9, "num_logprobs": 2}
    return [
        make_request(i, random_prompt(i, 10 + 7 * i), max_tokens=8 + 3 * i, **defaults | {"seed": i} | params)
        for i in range(num)
    ]


def test_steps_are_launched_before_the_step_before_them_is_computed() -> None:
    engine, device = overlapped()
    run_to_end(engine, plain_requests())
    assert device.max_queued == 2
    assert device.num_runs > 20


@pytest.mark.parametrize(
    "params",
    [
        {"repetition_penalty": 1.3},
        {"presence_penalty": 0.5},
        {"num_prompt_logprobs": 1, "max_tokens": 1},
    ],
)
def test_rows_that_need_the_host_run_serially_beside_others_and_get_their_bits(params: dict[str, Any]) -> None:
    requests = plain_requests()
    special = make_request(9, random_prompt(9, 30), seed=9, **{"max_tokens": 6, "temperature": 0.8} | params)
    engine, device = overlapped()
    together = run_to_end(engine, [*requests, special], arrive_every=2)
    assert together == serial([*requests, special])
    assert device.max_queued == 2  # after or before it


class SevenSampler(HostSampler):
    """Samples token 7 where it waits for the samples."""

    def sample(
        self, logits: Tensor, rows: Sequence[SamplingRow], find_masks: FindMasks | None = None
    ) -> list[Sample | None]:
        return [Sample(7) for _ in rows]


def test_steps_that_run_serially_have_the_sampler_of_the_overlapped_ones() -> None:
    """Two samplers that differ in a token would let it depend on the other requests of a step."""
    model, config = model_in("float32"), EngineConfig(num_blocks=64, max_model_len=96)
    engine = OverlappedEngine(model, config, torch.float32, torch.device("cpu"), SevenSampler())
    request = make_request(0, random_prompt(0, 10), max_tokens=4, repetition_penalty=1.3)
    assert run_to_end(engine, [request])[0].token_ids == [7] * 4


def test_a_plan_with_unknown_tokens_asks_once_which_sequence_makes_way(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, device = overlapped(max_batch_tokens=16)
    calls: list[str] = []
    find, start = engine.scheduler.find_displaced, engine._overlap._start

    def observed_find() -> Any:
        calls.append("find")
        return find()

    def observed_start(plan: Any, **options: Any) -> Any:
        calls.append("plan")
        return start(plan, **options)

    monkeypatch.setattr(engine.scheduler, "find_displaced", observed_find)
    monkeypatch.setattr(engine._overlap, "_start", observed_start)
    assert run_to_end(engine, plain_requests()) == serial(plain_requests())
    assert device.max_queued == 2
    assert len(calls) > 40
    assert calls == ["find", "plan"] * (len(calls) // 2)


def test_embeddings_run_beside_overlapped_steps() -> None:
    requests = [*plain_requests(), make_request(9, random_prompt(9, 30), pooling="mean", max_tokens=0)]
    engine, _ = overlapped()
    assert run_to_end(engine, requests) == serial(requests)


def test_steps_with_few_rows_run_serially_where_they_can_have_draft_tokens() -> None:
    engine, device = overlapped(speculation="on")
    requests = plain_requests(3, temperature=0.0)
    assert run_to_end(engine, requests) == serial(requests)
    assert device.max_queued == 1


def test_steps_with_many_rows_overlap_though_speculation_is_on() -> None:
    engine, device = overlapped(speculation="on", max_num_seqs=40, num_blocks=128)
    requests = [make_request(i, random_prompt(i, 5), max_tokens=12, temperature=0.5, seed=i) for i in range(40)]
    assert run_to_end(engine, requests) == serial(requests, max_num_seqs=40, num_blocks=128)
    assert device.max_queued == 2


def test_choices_of_one_prompt_copy_its_last_block_once() -> None:
    requests = [
        make_request(i, random_prompt(1, 18), group=1, max_tokens=12, temperature=0.9, seed=i) for i in range(6)
    ]
    engine, device = overlapped()
    assert run_to_end(engine, requests) == serial(requests)
    assert device.max_queued == 2


def test_a_stop_token_throws_away_the_row_that_was_launched_after_it() -> None:
    [request] = plain_requests(1, temperature=0.0)
    stop = serial([request])[0].token_ids[4]
    stopped = make_request(
        0, request.prompt_token_ids, max_tokens=8, temperature=0.0, num_logprobs=2, stop_token_ids=(stop,)
    )
    engine, device = overlapped()
    others = plain_requests()[1:]
    together = run_to_end(engine, [stopped, *others])
    assert together[0].finish_reason == "stop"
    assert together == serial([stopped, *others])
    assert device.max_queued == 2


def test_an_abort_throws_away_the_row_that_is_on_the_device() -> None:
    requests = plain_requests()
    engine, _ = overlapped()
    for request in requests:
        engine.add(request)
    for _ in range(3):
        engine.step()
    engine.scheduler.abort(2)
    rest: dict[int, list[int]] = {}
    while engine.has_work:
        for output in engine.step().outputs:
            rest.setdefault(output.request_id, []).extend(output.token_ids)
    assert 2 not in rest
    expected = serial(requests)
    assert all(
        expected[number].token_ids[3:] == tokens[-len(expected[number].token_ids[3:]) :]
        for number, tokens in rest.items()
    )
    assert engine.scheduler.pool.num_free == engine.config.num_blocks


def test_after_all_requests_are_aborted_the_engine_has_work_until_the_device_is_idle() -> None:
    engine, _ = overlapped()
    [request] = plain_requests(1)
    engine.add(request)
    engine.step()
    engine.scheduler.abort(0)
    assert engine.has_work
    assert engine.step().outputs == []
    assert not engine.has_work


def test_the_requests_on_the_device_are_announced_with_those_of_the_next_step() -> None:
    engine, _ = overlapped(max_num_seqs=2)
    announced: list[list[int]] = []
    engine.on_batch = announced.append
    for request in [
        make_request(0, [1, 2, 3], max_tokens=2),
        make_request(1, [4, 5], max_tokens=9),
        make_request(2, [6], max_tokens=3),
    ]:
        engine.add(request)
    while engine.has_work:
        engine.step()
    assert [1, 0] in announced  # 0 ends with a step that is still on the device
    assert announced[-1] == [1]


@pytest.mark.parametrize("number", range(2, 14))
@pytest.mark.parametrize("fault", ["launch", "result"])
def test_a_step_that_fails_once_on_the_device_changes_no_answer(
    fault: str, number: int, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, _ = overlapped(block_size=2)  # most steps write block tables
    steps = engine.device_steps
    name = "stage" if fault == "launch" else "run"
    original, calls = getattr(steps, name), iter(range(1000))

    def failing_once(*arguments: Any, **options: Any) -> Any:
        if next(calls) == number:
            raise IndexError("once")
        return original(*arguments, **options)

    monkeypatch.setattr(steps, name, failing_once)
    with caplog.at_level(logging.ERROR):
        assert run_to_end(engine, plain_requests()) == serial(plain_requests())
    assert len(caplog.records) == 1


@pytest.mark.parametrize("name", ["stage", "logits"])
def test_a_serial_decode_step_that_fails_once_changes_no_answer(
    name: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, _ = overlapped(block_size=2)  # most steps write block tables
    steps = engine.device_steps
    original, calls = getattr(steps, name), iter(range(1000))

    def failing_once(*arguments: Any, **options: Any) -> Any:
        if next(calls) == 2:
            raise IndexError("once")
        return original(*arguments, **options)

    monkeypatch.setattr(steps, name, failing_once)
    requests = plain_requests(repetition_penalty=1.2)
    with caplog.at_level(logging.ERROR):
        assert run_to_end(engine, requests) == serial(requests)
    assert len(caplog.records) == 1


def test_a_sequence_that_fails_on_the_device_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, _ = overlapped()
    hidden_states, bad = engine.model.hidden_states, random_prompt(3, 31)

    def poisoned(batch: Any, kv_cache: Any) -> torch.Tensor:
        states: torch.Tensor = hidden_states(batch, kv_cache)
        is_bad = (batch.seq_lens[: states.shape[0]] == len(bad) + 2) if len(states) == len(batch.seq_lens) else None
        return states if is_bad is None else torch.where(is_bad.unsqueeze(1), torch.nan, states)

    requests = [make_request(i, random_prompt(i, 31 if i == 3 else 5), max_tokens=9, seed=i) for i in range(5)]
    expected = serial(requests)
    monkeypatch.setattr(engine.model, "hidden_states", poisoned)
    got = run_to_end(engine, requests)
    assert got[3].finish_reason == "error"
    assert got[3].token_ids == expected[3].token_ids[:2]
    assert {i: got[i] for i in (0, 1, 2, 4)} == {i: expected[i] for i in (0, 1, 2, 4)}
    assert engine.scheduler.blocks.take_poisoned() or engine.scheduler.pool.num_free == engine.config.num_blocks


@pytest.mark.parametrize("kind", ["float32", "none", "int8, int8 pool"])
def test_padding_rows_change_no_bit_of_any_request(kind: str) -> None:
    requests = [make_request(i, random_prompt(i, 6 + i), max_tokens=20 - i, seed=i, temperature=1.0) for i in range(11)]
    engine = engine_of(f"{kind}, overlapped", **LIMITS)
    sizes: set[int] = set()
    steps = engine.device_steps  # type: ignore[attr-defined]  # it overlaps
    stage = steps.stage

    def observed(*arguments: Any) -> Any:
        staged = stage(*arguments)
        sizes.add(staged.decode_size - staged.num_seqs if staged.decode_size else 0)
        return staged

    steps.stage = observed
    assert run_to_end(engine, requests) == run_to_end(engine_of(kind, **LIMITS), requests)
    assert max(sizes) > 3


def test_events_and_counters_are_those_of_the_serial_loop_where_nothing_is_scarce() -> None:
    requests = plain_requests()

    def run(engine: Engine) -> tuple[list[tuple[Any, ...]], list[int]]:
        events: list[tuple[Any, ...]] = []
        counts = [0, 0, 0, 0]

        def take(output: StepOutput) -> None:
            events.extend((e.request_id, e.kind, e.num_tokens, e.num_computed_tokens) for e in output.events)
            stats = output.stats
            for place, count in enumerate(
                (stats.num_prefill_tokens, stats.prefix_cache_hits, stats.prefix_cache_queries, stats.num_preemptions)
            ):
                counts[place] += count

        run_to_end(engine, requests, arrive_every=3, on_step=take)
        return sorted(events), counts

    assert run(overlapped()[0]) == run(engine_of("float32", **LIMITS))


def test_a_profile_separates_the_launch_of_a_step_from_the_wait_for_the_one_before() -> None:
    laps: list[str] = []
    engine, _ = overlapped()
    engine._lap = laps.append
    for request in plain_requests():
        engine.add(request)
    engine.step()
    engine.step()
    step = ["schedule", "batch", "launch"]
    assert laps == [*step, *step, "wait", *step, "wait"]


def test_on_a_device_that_computes_at_once_the_answers_are_the_same() -> None:
    model = tiny_llama()
    config = EngineConfig(num_blocks=64, block_size=8, max_batch_tokens=32, max_num_seqs=8, max_model_len=96)
    engine = OverlappedEngine(model, config, torch.float32, torch.device("cpu"), HostSampler(), submit=enqueue)
    engine.warm_up()
    assert run_to_end(engine, plain_requests()) == run_to_end(
        Engine(model, config, torch.float32, torch.device("cpu")), plain_requests()
    )
