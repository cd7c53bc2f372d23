"""Random workloads: whatever arrives or is aborted, each request reads its own text and gets its own answer."""

from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from caravan.scheduler.config import EngineConfig
from caravan.scheduler.messages import Request
from tests.scheduler.requests import make_request
from tests.scheduler.slot_simulator import SlotSimulator, solo_output
from tests.support.extent import extent

pytestmark = pytest.mark.slow

VOCAB_SIZE = 7


@dataclass(frozen=True)
class Workload:
    config: EngineConfig
    arrivals: list[tuple[int, Request]]  # step, request
    aborts: list[tuple[int, int]]  # step, request id
    lookback: int | None  # of the model


@st.composite
def workloads(draw: st.DrawFn) -> Workload:
    block_size = draw(st.integers(1, 4))
    num_blocks = draw(st.integers(3, 10))
    max_model_len = max(2, num_blocks * block_size - draw(st.integers(0, 2)))
    config = EngineConfig(
        num_blocks=num_blocks,
        block_size=block_size,
        max_batch_tokens=draw(st.integers(1, 20)),
        max_num_seqs=draw(st.integers(1, 6)),
        max_model_len=max_model_len,
        speculation=draw(st.sampled_from(["on", "off"])),
        max_inter_token_seconds=draw(st.sampled_from([None, 0.001, 1.0])),
        is_shared=draw(st.booleans()),
        max_draft_model_len=draw(st.sampled_from([0, 8, max_model_len])),  # one that always drafts token 0
    )
    lookback = draw(st.sampled_from([None, 1, 2]))
    num_keys = draw(st.integers(1, 4))
    stem = draw(st.lists(st.integers(0, VOCAB_SIZE - 1), min_size=0, max_size=24))  # what the prompts share
    arrivals: list[tuple[int, Request]] = []
    for request_id in range(draw(st.integers(1, 10))):
        shared = stem[: draw(st.integers(0, len(stem)))]
        own = draw(st.lists(st.integers(0, VOCAB_SIZE - 1), min_size=1, max_size=6))
        prompt = (shared + own)[: max_model_len - 1]
        is_repeated: bool = draw(st.booleans())
        if arrivals and is_repeated:  # another choice, perhaps
            prompt = arrivals[-1][1].prompt_token_ids
        max_tokens = draw(st.sampled_from([1, 4, 12, 30]))
        replayed: list[int] = []
        if draw(st.booleans()) and len(prompt) + 1 < max_model_len and max_tokens > 1:  # back after an engine's death
            replayed = solo_output(make_request(0, prompt, max_tokens=1), VOCAB_SIZE, max_model_len, lookback)[0]
        request = make_request(
            request_id,
            prompt,
            output=replayed,
            salt=draw(st.sampled_from(["", "", "other"])),
            group=draw(st.sampled_from([0, 1])),
            key=f"key {draw(st.integers(1, num_keys))}",
            urgency=draw(st.sampled_from([0, 0, -1])),
            max_tokens=max_tokens,
            stop_token_ids=tuple({draw(st.integers(0, VOCAB_SIZE - 1))} - set(replayed)),
        )
        arrivals.append((draw(st.integers(0, 6)), request))
    aborts = draw(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 9)), max_size=4))
    return Workload(config, arrivals, aborts, lookback)


@pytest.mark.parametrize("is_overlapped", [False, True], ids=["serial", "overlapped"])
@settings(max_examples=extent(2500, 800), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(workload=workloads(), failures=st.sets(st.integers(0, 30), max_size=2))
def test_every_request_of_a_random_workload_gets_its_solo_answer_and_no_block_leaks(
    workload: Workload, failures: set[int], is_overlapped: bool
) -> None:
    simulator = SlotSimulator(workload.config, VOCAB_SIZE, workload.lookback, is_overlapped, failures.__contains__)
    aborted: set[int] = set()
    num_steps = 0
    last_arrival = max(step for step, _ in workload.arrivals)
    while num_steps <= last_arrival or simulator.scheduler.has_work:
        for step, request in workload.arrivals:
            if step == num_steps:
                simulator.add(request)
        for step, request_id in workload.aborts:
            if step == num_steps and request_id in simulator.outputs and request_id not in simulator.finish_reasons:
                simulator.scheduler.abort(request_id)
                aborted.add(request_id)
        simulator.step()
        num_steps += 1
        assert num_steps < 5000, "the workload does not end"

    assert simulator.scheduler.pool.num_free == workload.config.num_blocks, "a block leaked"
    assert simulator.scheduler.pool.num_pending == 0, "a sequence might wait for ever"
    for _, request in workload.arrivals:
        tokens, reason = solo_output(request, VOCAB_SIZE, workload.config.max_model_len, workload.lookback)
        got = simulator.outputs[request.request_id]
        if request.request_id in aborted:
            assert got == tokens[: len(got)]
        else:
            assert (got, simulator.finish_reasons[request.request_id]) == (tokens, reason)
    event(f"preemptions: {min(simulator.num_preemptions, 3)}")
    event(f"prefix hits: {simulator.num_prefix_hits > 0}")
    event(f"copies: {min(simulator.num_copies, 3)}")
    event(f"draft accepted: {simulator.num_accepted_tokens > 0}")
    event(f"draft rejected: {simulator.num_draft_tokens > simulator.num_accepted_tokens}")
    event(f"aborted: {bool(aborted)}")
    event(f"steps ahead: {min(simulator.num_steps_ahead, 3)}")
    event(f"failed steps: {simulator.num_failures}")


@pytest.mark.parametrize("is_overlapped", [False, True], ids=["serial", "overlapped"])
@settings(max_examples=extent(300, 100), deadline=None)
@given(
    block_size=st.integers(2, 6),
    prompt=st.lists(st.integers(0, VOCAB_SIZE - 1), min_size=2, max_size=20),
    lengths=st.lists(st.integers(1, 14), min_size=2, max_size=6),
    max_num_seqs=st.integers(2, 6),
)
def test_choices_of_one_prompt_get_their_solo_answers(
    block_size: int, prompt: list[int], lengths: list[int], max_num_seqs: int, is_overlapped: bool
) -> None:
    config = EngineConfig(num_blocks=120, block_size=block_size, max_num_seqs=max_num_seqs, max_model_len=40)
    simulator = SlotSimulator(config, VOCAB_SIZE, is_overlapped=is_overlapped)
    requests = [make_request(i, prompt, group=1, max_tokens=length) for i, length in enumerate(lengths)]
    for request in requests:
        simulator.add(request)
    while simulator.scheduler.has_work:
        simulator.step()
    for request in requests:
        assert simulator.outputs[request.request_id] == solo_output(request, VOCAB_SIZE, 40)[0]
    event(f"copies: {simulator.num_copies}")
