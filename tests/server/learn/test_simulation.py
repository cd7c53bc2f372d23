"""POST /v1/learn/simulate: what the engine's scheduler does with requests, and its limits."""

import time
from contextlib import suppress
from itertools import pairwise
from typing import Any

import pytest

from caravan.server.http.errors import ApiError
from caravan.server.learn.simulation import simulate
from caravan.server.learn.simulation_protocol import MAX_REQUESTS, SimulateRequest
from caravan.server.learn.tracer import Tracer
from docs.figures.continuous_batching import LENGTHS, SLOTS, timeline
from tests.server.openai.api import Body, answered, open_api

PATH = "/v1/learn/simulate"


def requests(*lengths: int, **fields: Any) -> list[Body]:
    """Return requests with other prompts of three tokens each."""
    return [{"prompt": [index, 1, 2], "max_tokens": length} | fields for index, length in enumerate(lengths)]


async def simulated(**body: Any) -> Body:
    """Return the answer to a request."""
    async with open_api(tracer=Tracer()) as api:
        return answered(await api.http.post(PATH, json=body))


async def refused(status: int, **body: Any) -> Body:
    """Return the error of a request."""
    async with open_api(tracer=Tracer()) as api:
        response = await api.http.post(PATH, json=body)
    assert response.status_code == status, response.text
    error: Body = response.json()["error"]
    return error


@pytest.mark.parametrize("is_continuous", [True, False])
async def test_the_steps_are_those_of_the_scheduler_in_the_guide(is_continuous: bool) -> None:
    answer = await simulated(requests=requests(*LENGTHS), max_num_seqs=SLOTS, waits_for_all=not is_continuous)
    steps = [sorted(row["request"] for row in step["rows"]) for step in answer["steps"]]
    assert steps == [sorted(one) for one in timeline(LENGTHS, is_continuous=is_continuous)]
    assert [step["step"] for step in answer["steps"]] == [*range(len(steps))]
    for number, length in enumerate(LENGTHS):
        result = answer["requests"][number]
        assert result["finished"] - result["first_token"] == length - 1
        assert (result["joined"] >= 0) is True


async def test_a_prompt_longer_than_a_step_is_computed_in_parts() -> None:
    answer = await simulated(requests=[{"prompt": [*range(20)], "max_tokens": 2}], max_batch_tokens=8)
    names = ("start", "num_tokens", "num_new_tokens", "is_prompt")
    rows = [tuple(row[name] for name in names) for step in answer["steps"] for row in step["rows"]]
    assert rows == [(0, 8, 0, True), (8, 8, 0, True), (16, 4, 1, True), (20, 1, 1, False)]
    assert answer["requests"][0]["first_token"] == 2


async def test_equal_beginnings_have_equal_hashes_and_are_found_in_the_cache() -> None:
    same = [*range(8)]
    prompts = [{"prompt": [*same, 50], "max_tokens": 1}, {"prompt": [*same, 60], "max_tokens": 1, "step": 3}]
    answer = await simulated(requests=prompts, block_size=4)
    first, second = answer["requests"]
    assert first["block_hashes"] == second["block_hashes"]
    assert len({*first["block_hashes"]}) == 2
    assert (first["num_cached_tokens"], second["num_cached_tokens"]) == (0, 8)
    assert answer["steps"][-1]["rows"][0]["blocks"][:2] == answer["steps"][0]["rows"][0]["blocks"][:2]
    other = await simulated(requests=[{"prompt": [9, *same[1:]], "max_tokens": 1}], block_size=4)
    assert not {*other["requests"][0]["block_hashes"]} & {*first["block_hashes"]}  # of the second block neither


async def test_a_full_pool_preempts_the_youngest_and_computes_it_again() -> None:
    answer = await simulated(requests=requests(12, 12), num_blocks=4, block_size=4)
    assert [step["preempted"] for step in answer["steps"] if step["preempted"]] == [[1]]
    assert [one["num_preemptions"] for one in answer["requests"]] == [0, 1]
    assert max(step["num_used_blocks"] for step in answer["steps"]) == 4
    assert answer["requests"][1]["finished"] > answer["requests"][0]["finished"] > 0


async def test_the_target_of_running_streams_makes_the_chunks_of_a_prompt_smaller() -> None:
    body: Body = {
        "requests": [*requests(24), {"prompt": [*range(100, 400)], "max_tokens": 1, "step": 4}],
        "max_batch_tokens": 256,
        "step_ms": 5,
        "token_ms": 1,
    }
    largest = []
    for target in (None, 40):
        answer = await simulated(**body, max_inter_token_ms=target)
        steps = answer["steps"]
        assert all(one["end_ms"] == later["start_ms"] for one, later in pairwise(steps))
        assert steps[0]["end_ms"] == 5 + 1 * 3
        largest.append(max(step["end_ms"] - step["start_ms"] for step in steps))
    assert largest[0] == 5 + 256
    assert largest[1] <= 40 * 1.25


@pytest.mark.parametrize(("num_tokens", "max_tokens", "block_size"), [(500, 100, 16), (64, 60, 1)])
async def test_threat_40_the_largest_simulations_end_soon_with_an_answer_of_limited_size(
    num_tokens: int, max_tokens: int, block_size: int
) -> None:
    same = {"prompt": [*range(num_tokens)], "max_tokens": max_tokens}
    limits = {"num_blocks": 128, "block_size": block_size, "max_num_seqs": MAX_REQUESTS, "max_batch_tokens": 4096}
    body = {"requests": [same] * MAX_REQUESTS} | limits
    async with open_api(tracer=Tracer()) as api:
        response = await api.http.post(PATH, json=body)
    request = SimulateRequest.model_validate(body)
    began_seconds = time.process_time()
    with suppress(ApiError):
        simulate(request)
    assert time.process_time() - began_seconds < 1  # 0.03 on an idle core
    assert response.status_code in (200, 400)  # 400: more than 256 steps
    assert len(response.content) < 1_000_000


async def test_late_requests_wait_until_they_arrive() -> None:
    answer = await simulated(requests=[{"prompt": [1], "max_tokens": 1, "step": 5}])
    assert [step["step"] for step in answer["steps"]] == [5]


@pytest.mark.parametrize(
    ("body", "param", "text"),
    [
        ({"requests": requests(60), "num_blocks": 2}, "requests[0]", "A request has 63 tokens"),
        ({"requests": []}, "requests", ""),
        ({"requests": requests(*[1] * (MAX_REQUESTS + 1))}, "requests", ""),
        ({"requests": [{"prompt": [-1], "max_tokens": 1}]}, "requests[0].prompt", "Token ids are from 0"),
        ({"requests": [{"prompt": [], "max_tokens": 1}]}, "requests[0].prompt", ""),
        ({"requests": requests(*[200] * 3), "max_num_seqs": 1}, "requests", "more than 256 steps"),
    ],
)
async def test_a_simulation_that_is_too_large_is_refused(body: Body, param: str, text: str) -> None:
    error = await refused(400, **body)
    assert error["param"] == param
    assert text in error["message"]


async def test_threat_40_without_lessons_simulations_are_refused() -> None:
    async with open_api() as api:
        response = await api.http.post(PATH, json={"requests": requests(1)})
    assert response.status_code == 403
    assert response.json()["error"]["code"] == "learn_off"
