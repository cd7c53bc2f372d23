"""Steps of whole engines on a GPU that does not exist: nothing goes back to the host but tokens, and nothing waits.

Tensors on the GPU have shapes and no numbers (tests/support/fake_gpu.py), and Triton's launches are noted, not run. So
every number that the host reads of them is an error. This does not prove that a kernel reads and writes what it should,
that tensors have the types and the sizes that a kernel expects, that memory is not used again too early, nor anything
of CUDA itself: its graphs, streams, events and pinned memory. docs/gpu.md says so, too.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from benchmarks.gpu_inputs import zero_weight
from benchmarks.gpu_shapes import LLAMA_8B
from caravan.model.config import ModelConfig
from caravan.model.cuda.llama import CudaLlama
from caravan.model.cuda.packed_layouts import BLOCK_LAYOUTS, BYTES, GRIDS
from caravan.model.cuda.packed_linear import PackedLinear
from caravan.model.cuda.sampler import CudaSampler
from caravan.model.sampling.sample import Sample
from caravan.model.sampling.sampler import Masks, SamplingRow
from caravan.model.sampling.sampling_params import SamplingParams
from caravan.scheduler.config import EngineConfig
from caravan.scheduler.device_step import DeviceSteps
from caravan.scheduler.overlapped_engine import OverlappedEngine
from caravan.scheduler.step_graph import Capture, Decode, without_graph
from caravan.scheduler.step_result import StepResult
from tests.scheduler.requests import make_request
from tests.support.extent import every
from tests.support.fake_gpu import GPU, HOST_READS, Copy, FakeGpu, Launch, Wait

pytestmark = pytest.mark.proofs

NUM_LAYERS = 2
SHAPES = asdict(LLAMA_8B) | {"num_layers": NUM_LAYERS}
NUM_SAMPLER_LAUNCHES = 7
KINDS: dict[str, dict[str, Any]] = {
    "Llama": {},
    "Qwen3": {"has_query_key_norm": True, "has_qkv_bias": True, "has_output_bias": True, "tie_embeddings": True},
    "Mistral": {"sliding_window": 100},
    "int4": {"quantization": "int4"},
    "int8": {"quantization": "int8"},
    "Q4_K": {"quantization": "native"},  # and Q6_K
    "int8 pool": {"pool": torch.int8},
    "cuBLAS": {"fast_matmul": True},
}


@pytest.fixture
def gpu() -> Iterator[FakeGpu]:
    gpu = FakeGpu()
    with gpu.on():
        yield gpu


def model(quantization: Any = "none", *, fast_matmul: bool = False, **changes: Any) -> CudaLlama:
    """Return a model on the GPU that is not there, with weights of the right shapes."""
    config = ModelConfig(**SHAPES | changes, max_position=8192)
    with torch.device("meta"):
        made = CudaLlama(config, GPU, quantization, fast_matmul=fast_matmul)
    for module in list(made.modules()):
        if isinstance(module, PackedLinear):
            place_zeros(module)
        for name, weight in list(module.named_parameters(recurse=False)):
            empty = torch.empty(weight.shape, dtype=torch.bfloat16, device=GPU)
            setattr(module, name, nn.Parameter(empty, requires_grad=False))
    made.set_max_position(config.max_position, GPU)
    return made


def place_zeros(linear: PackedLinear) -> None:
    """Give a layer a weight of zeros; of blocks it has two kinds, as the queries, keys and values of Q4_K_M."""
    layouts = {"int4": [GRIDS[4]], "int8": [BYTES]}.get(
        linear.quantization, [BLOCK_LAYOUTS[kind] for kind in ("Q4_K", "Q6_K")]
    )
    num_outputs = linear.out_features // len(layouts)
    linear.parts = [zero_weight(layout, num_outputs, linear.in_features, GPU) for layout in layouts]
    linear.packed = nn.ParameterList()


def engine(
    pool: torch.dtype = torch.bfloat16, capture: Capture = without_graph, max_batch_tokens: int = 8192, **kind: Any
) -> OverlappedEngine:
    config = EngineConfig(
        num_blocks=2048, max_num_seqs=256, max_batch_tokens=max_batch_tokens, max_model_len=8192, speculation="off"
    )
    sampler = CudaSampler(config.max_num_seqs, SHAPES["vocab_size"], GPU)
    return OverlappedEngine(model(**kind), config, pool, GPU, sampler, capture=capture)


def decode_step(gpu: FakeGpu, engine: OverlappedEngine, num_seqs: int) -> list[Copy | Launch | Wait]:
    """Return what happens in a decode step of num_seqs new sequences, whose prompts count as computed."""
    scheduler = engine.scheduler
    for i in range(num_seqs):
        engine.add(make_request(i, [i, 1, 2], max_tokens=4))
    plan = scheduler.schedule()
    scheduler.commit(plan, StepResult([Sample(0)] * num_seqs))
    gpu.take()
    engine.launch(scheduler.schedule(), [1] * num_seqs)
    return gpu.take()


def copies(events: list[Copy | Launch | Wait]) -> list[Copy]:
    return [event for event in events if isinstance(event, Copy)]


def launches(events: list[Copy | Launch | Wait]) -> list[Launch]:
    return [event for event in events if isinstance(event, Launch)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_decode_step_gives_the_host_four_bytes_a_row_and_waits_for_nothing(gpu: FakeGpu, kind: str) -> None:
    events = decode_step(gpu, engine(**KINDS[kind]), 3)
    step, tokens = copies(events)
    num_bytes = 8 * 3 * 4 + 32 + 16  # rows, tokens and positions, padded to 4 sequences; 3 new blocks in 3 places
    num_bytes += 256 * (7 * 8 + 6 * 4) + 1040 + 2 * 16  # numbers and choices of all rows; where biases start; no biases
    assert step == Copy(is_to_host=False, num_bytes=num_bytes, waits=False)
    assert tokens == Copy(is_to_host=True, num_bytes=4 * 3, waits=False)
    assert Wait() not in events
    assert {device for launch in launches(events) for device in launch.devices} == {GPU}
    per_layer = {"Qwen3": 11, "cuBLAS": 6, "Q4_K": 14}.get(kind, 10)
    head = {"cuBLAS": 1, "Q4_K": 3}.get(kind, 2)  # the last norm, and its product
    assert len(launches(events)) == NUM_LAYERS * per_layer + head + NUM_SAMPLER_LAUNCHES


@pytest.mark.parametrize("num_seqs", [1, 2, 256])
def test_batches_of_every_size_are_alike(gpu: FakeGpu, num_seqs: int) -> None:
    events = decode_step(gpu, engine(), num_seqs)
    assert are_clean(events)
    assert copies(events)[1].num_bytes == 4 * num_seqs
    assert len(launches(events)) == NUM_LAYERS * 10 + 2 + NUM_SAMPLER_LAUNCHES


def test_a_whole_run_waits_for_the_tokens_of_a_step_after_the_next_one_is_launched(gpu: FakeGpu) -> None:
    """With prompts in several chunks, a prefix that is copied, drawn tokens, biases, penalties, log-probabilities."""
    made = engine(max_batch_tokens=64)
    kinds: list[dict[str, Any]] = [
        {"num_logprobs": 5},
        {"temperature": 0.7, "top_p": 0.9},
        {"logit_bias": {7: 1.0}, "min_tokens": 2, "stop_token_ids": (9,)},
        {"repetition_penalty": 1.2},
    ]
    for i, kind in enumerate(kinds):
        made.add(make_request(i, list(range(100)), max_tokens=12, **kind))
    gpu.take()
    ends: dict[int, str | None] = {}
    num_waits = 0
    while made.has_work:
        output = made.step()
        for sequence in output.outputs:
            assert (sequence.error, sequence.token_ids) == (None, [0])  # a copy gives zeros
            ends[sequence.request_id] = sequence.finish_reason
        events = gpu.take()
        assert not any(copy.waits for copy in copies(events))
        assert (
            events.index(Wait()) == len(events) - 1
        )  # also for chunks, which give no tokens: their buffer is used again
        num_waits += 1
    assert ends == dict.fromkeys(range(4), "length")
    assert num_waits >= 12


def test_a_step_that_needs_the_host_replays_the_graph_and_launches_the_sampler_alone(gpu: FakeGpu) -> None:
    """Of the whole batch, whose other rows do not need it. Prompts have no graph."""
    graphs: list[int] = []

    def capture(decode: Decode) -> Decode:
        logits = decode()

        def replay() -> Tensor:
            graphs.append(len(logits))
            return logits

        return replay

    made = engine(capture=capture)
    made.device_steps.warm_up()
    kinds: list[dict[str, Any]] = [{"bad_words": ((8, 9),)}, {}, {"temperature": 0.9}]
    for i, params in enumerate(kinds):
        made.add(make_request(i, [i, 1, 2], max_tokens=4, **params))
    made.step()  # prompts
    gpu.take()
    graphs.clear()
    while made.has_work:
        assert [one.error for one in made.step().outputs if one.error] == []
        assert len(launches(gpu.take())) == NUM_SAMPLER_LAUNCHES
    assert graphs == [4, 4, 4]


def test_what_a_graph_records_are_launches_with_the_same_numbers_in_every_step(gpu: FakeGpu) -> None:
    recorded: list[list[Copy | Launch | Wait]] = []

    def capture(decode: Decode) -> Decode:
        def run() -> Tensor:
            num_before = len(gpu.events)
            logits = decode()
            recorded.append(gpu.events[num_before:])
            return logits

        return run

    made = engine(capture=capture)
    for i in range(4):
        made.add(make_request(i, [i] * (1 + 700 * i), max_tokens=5))
    while made.has_work:
        made.step()
    first, *others = recorded
    assert len(launches(first)) == len(first) == NUM_LAYERS * 10 + 2
    assert len(others) >= 3
    assert all(other == first for other in others)


@pytest.mark.parametrize("kind", every(3, ["Llama", "Qwen3", "int8 pool", "Q4_K", "int4", "9 heads"]))
def test_no_request_launches_a_kernel_that_the_warm_up_has_not_compiled(gpu: FakeGpu, kind: str) -> None:
    made = engine(max_batch_tokens=1024, **KINDS.get(kind, {"num_heads": 9, "num_kv_heads": 3}))
    gpu.take()
    made.warm_up()
    warm = {launch.variant for launch in launches(gpu.take())}
    kinds: list[dict[str, Any]] = [
        {},
        {"num_logprobs": 0},
        {"num_logprobs": 1, "temperature": 0.9},
        {"num_logprobs": 16, "repetition_penalty": 1.2},
        {"bad_words": ((8, 9),), "presence_penalty": 1.2},  # its steps are serial
        {"num_logprobs": 20, "top_k": 5, "min_p": 0.1},
        {"logit_bias": dict.fromkeys(range(1100), 1.0), "presence_penalty": 1.0},
    ]
    num_steps = 0
    for i, length in enumerate([1, 2, 3, 40, 65, 200, 900, 1500, 33, 4000, 17, 18]):
        made.add(make_request(i, [i] * length, max_tokens=3 + 5 * i, **kinds[i % len(kinds)]))
        for _ in range(3):
            num_steps += 1
            assert [one.error for one in made.step().outputs if one.error] == []
    while made.has_work:
        num_steps += 1
        assert [one.error for one in made.step().outputs if one.error] == []
    for num_bytes in (16_032, 16_036):  # of a mask; libraries pad them
        rows = [SamplingRow(SamplingParams(seed=1, max_tokens=1), 0, allows=lambda _: False) for _ in range(3)]
        masks = np.full((3, num_bytes), 255, np.uint8)
        made._draw(torch.zeros(3, SHAPES["vocab_size"], device=GPU), rows, partial(all_of, masks))
    for num_rows in (1, 3, 64):  # of a scored prompt
        made.model.logits(torch.zeros(num_rows, SHAPES["hidden_size"], dtype=torch.bfloat16, device=GPU))
    used = {launch.variant for launch in launches(gpu.take())}
    assert num_steps > 60
    assert len(used) > 20
    assert [dict(variant) for variant in used - warm] == []


def all_of(masks: Masks, rows: list[int]) -> Masks:
    """Return the masks of rows, which are all."""
    assert len(rows) == len(masks)
    return masks


# What must not be in a step: it gives numbers to the host, or waits.
READS: dict[str, Callable[[Tensor], object]] = {
    "item": lambda x: x.max().item(),
    "int": lambda x: int(x.max()),
    "truth": lambda x: 1 if (x < 0).any() else 2,
    "tolist": lambda x: x.tolist(),
    "numpy": lambda x: x.numpy(),
    "cpu": lambda x: x.cpu(),
    "to": lambda x: x.to("cpu", non_blocking=True),
    "copy_": lambda x: torch.empty(x.shape, dtype=x.dtype).copy_(x),
    "a shape that depends on numbers": lambda x: x[x < 0],
    "a copy from memory that is not pinned": lambda x: torch.zeros(3).to(x.device),
    "a new tensor from numbers of the host": lambda x: torch.tensor([1, 2], device=x.device),
}
PLACES: dict[str, tuple[type, str]] = {
    "tokens of the step": (DeviceSteps, "_known"),
    "layers": (CudaLlama, "run_layers"),
    "sampler": (CudaSampler, "_samples"),
}


def are_clean(events: list[Copy | Launch | Wait]) -> bool:
    """Return whether a decode step has one copy to the device and one to the host, and waits for none."""
    return [(copy.is_to_host, copy.waits) for copy in copies(events)] == [(False, False), (True, False)]


@pytest.mark.parametrize("read", READS)
@pytest.mark.parametrize("place", PLACES)
def test_a_host_read_in_a_step_is_noticed(gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch, place: str, read: str) -> None:
    owner, name = PLACES[place]
    original = getattr(owner, name)

    def reads(self: Any, first: Tensor, *rest: Any) -> Any:
        READS[read](first.flatten().narrow(0, 0, 2))
        return original(self, first, *rest)

    made = engine()
    monkeypatch.setattr(owner, name, reads)
    try:
        events = decode_step(gpu, made, 3)
    except HOST_READS:
        return
    assert not are_clean(events)


def test_a_step_without_host_reads_is_clean(gpu: FakeGpu) -> None:
    assert are_clean(decode_step(gpu, engine(), 3))


def test_a_kernel_that_gets_a_tensor_of_the_host_is_noticed(gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    made = engine()
    monkeypatch.setattr(made.model, "rope_cos", torch.zeros(8192, 64))
    events = decode_step(gpu, made, 3)
    assert {launch.name for launch in launches(events) if launch.devices != {GPU}} == {"rotate_and_write"}
