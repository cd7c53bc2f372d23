"""Whole engines with the kernels: the plain model's tokens, and the same bits however requests are scheduled."""

from pathlib import Path
from typing import Any

import pytest
import torch

from caravan.model.backend import choose_backend
from caravan.model.cuda.linear import CudaLinear
from caravan.model.cuda.llama import CudaLlama, CudaQuantization
from caravan.model.cuda.packed_linear import PackedLinear
from caravan.model.cuda.sampler import CudaSampler
from caravan.model.llama import Llama
from caravan.model.loader import load_model, open_checkpoint
from caravan.model.quantization import dequantize, quantize
from caravan.scheduler.messages import Request
from caravan.scheduler.overlapped_engine import OverlappedEngine
from caravan.scheduler.step_graph import without_graph
from tests.scheduler.requests import make_request
from tests.support.block_files import write_model
from tests.support.extent import every
from tests.support.fake_device import FakeDevice
from tests.support.tiny_llama import MakeModel, Transcript, run_to_end, tiny_engine, tiny_llama

pytestmark = [pytest.mark.proofs, pytest.mark.usefixtures("as_on_a_gpu")]

# A step of the interpreter takes as long as it has programs.
SHAPE: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_layers": 1,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 8,
}
QWEN3 = {"num_kv_heads": 4, "has_query_key_norm": True, "has_qkv_bias": True, "has_output_bias": True}
# SmolLM3's layers and Granite's factors; no model has both of them, since one factor is in the rotation.
RELATIVES: list[dict[str, Any]] = [
    {"layers_without_rope": (0,), "logits_scaling": 0.5},
    {"embedding_multiplier": 5.0, "attention_multiplier": 0.2},
]
MISTRAL = {"num_kv_heads": 1, "sliding_window": 16, "num_layers": 2, "tie_embeddings": False}


def maker(quantization: CudaQuantization = "none", *, fast_matmul: bool = False) -> MakeModel:
    return lambda config: CudaLlama(config, torch.device("cpu"), quantization, fast_matmul=fast_matmul)


def model(dtype: torch.dtype = torch.float32, make_model: MakeModel | None = None, **changes: Any) -> Llama:
    return tiny_llama(dtype=dtype, make_model=make_model or maker(), **(SHAPE | changes))


def requests(max_tokens: int = 6) -> list[Request]:
    """Return requests of several lengths, some of whose tokens are drawn."""
    kinds: list[dict[str, Any]] = [{}, {"temperature": 0.8, "top_p": 0.9}, {"temperature": 1.0, "seed": 5}]
    return [
        make_request(
            i, [(7 * i + 3 * j) % 64 for j in range(5 + 9 * i)], max_tokens=max_tokens, num_logprobs=2, **params
        )
        for i, params in enumerate(kinds)
    ]


def finished(transcripts: dict[int, Transcript], max_tokens: int = 6) -> dict[int, Transcript]:
    """Return transcripts, none of which failed: a kernel's error ends its request, and two that failed are equal."""
    for transcript in transcripts.values():
        assert (transcript.finish_reason, transcript.error) == ("length", None)
        assert len(transcript.token_ids) == max_tokens
    return transcripts


@pytest.mark.parametrize("changes", every(2, [{}, QWEN3, MISTRAL, *RELATIVES]))
def test_an_engine_gives_the_tokens_of_the_plain_model(changes: dict[str, Any]) -> None:
    expected = finished(run_to_end(tiny_engine(tiny_llama(**(SHAPE | changes))), requests()))
    found = finished(run_to_end(tiny_engine(model(**changes)), requests(), arrive_every=2))
    for request_id, transcript in expected.items():
        assert found[request_id].token_ids == transcript.token_ids
        for ours, theirs in zip(found[request_id].logprobs, transcript.logprobs, strict=True):
            assert ours.top_logprobs == pytest.approx(theirs.top_logprobs, abs=1e-4)


@pytest.mark.parametrize(
    ("dtype", "pool", "quantization"),
    [
        (torch.float32, None, "none"),
        (torch.bfloat16, None, "none"),
        (torch.bfloat16, torch.int8, "none"),
        (torch.bfloat16, None, "int8"),
    ],
    ids=["float32", "bfloat16", "int8 pool", "int8"],
)
def test_batched_chunked_and_alone_a_request_gets_the_same_bits(
    dtype: torch.dtype, pool: torch.dtype | None, quantization: CudaQuantization
) -> None:
    tiny = model(dtype, maker(quantization))
    together = finished(run_to_end(tiny_engine(tiny, pool), requests()))
    assert finished(run_to_end(tiny_engine(tiny, pool, max_batch_tokens=7), requests(), arrive_every=2)) == together
    assert finished(run_to_end(tiny_engine(tiny, pool), requests()[2:])) == {2: together[2]}


def test_preemption_changes_no_bit() -> None:
    tiny = model(torch.bfloat16)
    expected = finished(run_to_end(tiny_engine(tiny), requests(12)), 12)
    engine = tiny_engine(tiny, num_blocks=6, max_model_len=40)
    num_preemptions: list[int] = []
    found = run_to_end(engine, requests(12), on_step=lambda step: num_preemptions.append(step.stats.num_preemptions))
    assert sum(num_preemptions) > 0
    assert finished(found, 12) == expected


def test_logits_in_bfloat16_are_near_those_of_the_plain_model() -> None:
    expected = finished(run_to_end(tiny_engine(tiny_llama(dtype=torch.bfloat16, **SHAPE)), requests(1)), 1)
    found = finished(run_to_end(tiny_engine(model(torch.bfloat16)), requests(1)), 1)
    for request_id, transcript in expected.items():
        (ours,), (theirs,) = found[request_id].logprobs, transcript.logprobs
        assert ours.top_logprobs == pytest.approx(theirs.top_logprobs, abs=0.1)


def test_weights_of_4_bits_give_the_tokens_of_the_plain_model_on_their_grid() -> None:
    plain = tiny_llama(**SHAPE)
    for name, weight in plain.named_parameters():
        if name.startswith("layers.") and weight.ndim == 2:
            weight.data = dequantize(quantize(weight.data, 4))
    expected = finished(run_to_end(tiny_engine(plain), requests()))
    found = finished(run_to_end(tiny_engine(model(make_model=maker("int4"))), requests()))
    assert {i: one.token_ids for i, one in found.items()} == {i: one.token_ids for i, one in expected.items()}


def test_fast_products_give_the_tokens_of_the_plain_model() -> None:
    expected = finished(run_to_end(tiny_engine(tiny_llama(**SHAPE)), requests()))
    found = finished(run_to_end(tiny_engine(model(make_model=maker(fast_matmul=True))), requests()))
    assert {i: one.token_ids for i, one in found.items()} == {i: one.token_ids for i, one in expected.items()}


@pytest.mark.parametrize("quantization", ["none", "int4", "int8"])
def test_a_gpu_gets_the_kernels_and_its_weights_have_the_size_that_is_planned(
    tiny_model_path: Any, monkeypatch: pytest.MonkeyPatch, quantization: CudaQuantization
) -> None:
    monkeypatch.setattr("caravan.model.gpu_requirements.missing_for_gpu", lambda: None)
    checkpoint = open_checkpoint(tiny_model_path)
    backend = choose_backend(checkpoint, dtype="auto", quantization=quantization, block_size=16, is_gpu=True)
    made = CudaLlama(checkpoint.config, torch.device("cpu"), quantization, fast_matmul=False)
    assert type(backend.make_model(checkpoint.config)) is type(made)
    loaded = load_model(checkpoint, backend.dtype, torch.device("cpu"), 64, lambda _: made.to("meta"))
    assert sum(weight.nbytes for weight in loaded.parameters()) == backend.weight_bytes
    kind = CudaLinear if quantization == "none" else PackedLinear
    assert isinstance(loaded.get_submodule("layers.0.attention.qkv"), kind)


@pytest.mark.parametrize("is_tied", [True, False])
def test_a_file_in_blocks_gives_the_bits_of_its_weights_in_bfloat16(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, is_tied: bool
) -> None:
    """As a file of kind Q4_K_M, with a matrix in bfloat16 and one in Q8_0."""
    kinds = {"": "Q4_K", "attn_v": "Q6_K", "token_embd": "Q6_K", "output.weight": "Q6_K", "attn_output": "Q8_0"}
    shape = {"hidden_size": 256, "intermediate_size": 256, "head_dim": 64, "vocab_size": 278, "num_layers": 1}
    path = write_model(tmp_path / "m.gguf", kinds | {"attn_k": ""}, **shape, tie_embeddings=is_tied)
    monkeypatch.setattr("caravan.model.gpu_requirements.missing_for_gpu", lambda: None)
    checkpoint = open_checkpoint(path)
    found = {}
    for quantization in ("auto", "none"):
        backend = choose_backend(checkpoint, dtype="auto", quantization=quantization, block_size=16, is_gpu=True)
        assert backend.quantization == ("native" if quantization == "auto" else "none")
        make = maker(backend.quantization)
        loaded = load_model(checkpoint, backend.dtype, torch.device("cpu"), 64, make)
        assert sum(weight.nbytes for weight in loaded.parameters()) == backend.weight_bytes
        found[quantization] = finished(run_to_end(tiny_engine(loaded), requests(2)[:2]), 2)
    assert found["auto"] == found["none"]


def test_with_the_sampler_on_the_device_and_overlapped_steps_a_request_gets_the_same() -> None:
    tiny = model(torch.bfloat16)
    expected = finished(run_to_end(tiny_engine(tiny), requests(12)), 12)
    device = FakeDevice()
    serial = tiny_engine(tiny)
    sampler = CudaSampler(serial.config.max_num_seqs, SHAPE["vocab_size"], torch.device("cpu"))
    engine = OverlappedEngine(
        tiny, serial.config, torch.bfloat16, torch.device("cpu"), sampler, submit=device.submit, capture=without_graph
    )
    found = finished(run_to_end(engine, requests(12), arrive_every=2), 12)
    assert device.max_queued == 2
    for request_id, transcript in expected.items():
        assert found[request_id].token_ids == transcript.token_ids
        for ours, theirs in zip(found[request_id].logprobs, transcript.logprobs, strict=True):
            assert ours.top_logprobs == pytest.approx(theirs.top_logprobs, abs=1e-5)
