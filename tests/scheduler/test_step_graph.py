"""Decode steps as graphs: recorded once for each size, replayed with the numbers of each step."""

from functools import partial
from typing import Any

import pytest
import torch

from caravan.model.llama import Llama
from caravan.scheduler.step_graph import ladder, padded_size, without_graph
from tests.scheduler.requests import make_request
from tests.support.engine_kinds import random_prompt
from tests.support.fake_device import FakeDevice
from tests.support.fake_graph import FakeGraphs, MaskedAttention
from tests.support.tiny_llama import run_to_end, tiny_engine, tiny_llama


def test_a_ladder_ends_with_the_largest_batch_and_wastes_few_rows() -> None:
    assert ladder(1) == [1]
    assert ladder(6) == [1, 2, 4, 6]
    assert ladder(40) == [1, 2, 4, 8, 16, 32, 40]
    sizes = ladder(256)
    assert sizes[:6] == [1, 2, 4, 8, 16, 32]
    assert sizes[-1] == 256
    assert len(sizes) == 20
    for num_rows in range(1, 257):
        size = padded_size(num_rows, sizes)
        assert num_rows <= size < num_rows + max(num_rows, 16)


def test_replayed_decode_steps_give_the_answers_of_steps_without_graphs() -> None:
    model = tiny_llama(make_model=lambda config: Llama(config, MaskedAttention()))
    requests = [
        make_request(i, random_prompt(i, 4 + 3 * i), max_tokens=4 + 2 * i, temperature=0.8, seed=i) for i in range(9)
    ]
    graphs, device = FakeGraphs(), FakeDevice()
    make = partial(tiny_engine, model, max_model_len=64, max_num_seqs=9)
    replayed = run_to_end(make(fake_device=device, capture=graphs.capture), requests, arrive_every=2)
    assert replayed == run_to_end(make(fake_device=FakeDevice(), capture=without_graph), requests)
    assert all(transcript.finish_reason == "length" for transcript in replayed.values())
    assert replayed == run_to_end(make(), requests)
    assert device.max_queued == 2
    assert graphs.num_captures <= len(ladder(9))
    assert graphs.num_replays > 10


def test_a_row_with_penalties_lets_the_batch_replay_decode_steps_and_changes_no_answer() -> None:
    model = tiny_llama(make_model=lambda config: Llama(config, MaskedAttention()))
    requests = [make_request(i, random_prompt(i, 4 + 3 * i), max_tokens=8, temperature=0.8, seed=i) for i in range(3)]
    requests.append(make_request(3, random_prompt(3, 9), max_tokens=12, repetition_penalty=1.3))
    graphs, device = FakeGraphs(), FakeDevice()
    limits: dict[str, Any] = {"max_model_len": 64, "max_num_seqs": 5}
    engine = tiny_engine(model, fake_device=device, capture=graphs.capture, **limits)
    assert run_to_end(engine, requests) == run_to_end(tiny_engine(model, **limits), requests)
    assert device.max_queued == 0  # all steps are serial
    assert graphs.num_replays == 11  # all but that of the prompts


def test_a_recorded_step_reads_no_number_on_the_host() -> None:
    size = torch.tensor([3])
    with pytest.raises(AssertionError, match="a number to the host"):
        FakeGraphs().capture(lambda: torch.zeros(int(size.item())))


def test_warming_up_records_every_size_and_changes_no_answer() -> None:
    model = tiny_llama(make_model=lambda config: Llama(config, MaskedAttention()))
    graphs = FakeGraphs()
    limits: dict[str, Any] = {"max_model_len": 64, "max_num_seqs": 5}
    engine = tiny_engine(model, fake_device=FakeDevice(), capture=graphs.capture, **limits)
    engine.device_steps.warm_up()  # type: ignore[attr-defined]  # it overlaps
    assert graphs.num_captures == len(ladder(5))
    requests = [make_request(i, random_prompt(i, 5), max_tokens=9) for i in range(5)]
    assert run_to_end(engine, requests) == run_to_end(tiny_engine(model, **limits), requests)
    assert graphs.num_captures == len(ladder(5))
