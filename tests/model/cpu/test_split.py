"""The model in kernels, split between ranks: the bits of one process in every quantization."""

from pathlib import Path
from typing import Any

import gguf
import pytest
import torch

from caravan.model.blocks import BLOCK_SIZES, NVFP4_WITH_FACTOR
from caravan.model.cpu.build import load_kernels
from caravan.model.cpu.linear import Quantization
from caravan.model.cpu.llama import CpuLlama
from caravan.model.exchange import Exchange, ExchangeFailed
from caravan.model.loader import load_model, open_checkpoint
from caravan.model.share import Share
from tests.support.gguf_blocks import random_blocks
from tests.support.gguf_files import Tensors, write_tiny_llama
from tests.support.large_folders import write_large_folder
from tests.support.ranks import CPU, assert_equal_bits, assert_ranks_read_the_whole, on_ranks, step_logits
from tests.support.tiny_llama import tiny_llama
from tests.support.transformers_models import VARIANTS, random_model

THREE_KV_HEADS: dict[str, Any] = {"num_heads": 9, "num_kv_heads": 3, "head_dim": 28, "vocab_size": 278}
IN_BLOCKS = THREE_KV_HEADS | {"hidden_size": 256, "intermediate_size": 512, "num_heads": 12, "head_dim": 64}


def write_blocks(path: Path, kinds: list[str], **changes: Any) -> Path:
    """Write a model whose matrices are in blocks of these kinds, one after the other."""

    def change(tensors: Tensors) -> None:
        matrices = [name for name, (array, _) in tensors.items() if array.ndim == 2]
        for seed, name in enumerate(matrices):
            kind = kinds[seed % len(kinds)]
            rows, width = tensors[name][0].shape
            tensors[name] = (random_blocks(kind, rows, width, seed), gguf.GGMLQuantizationType[kind])

    write_tiny_llama(path, model=tiny_llama(**(IN_BLOCKS | changes)), change=change)
    return path


@pytest.mark.parametrize("num_ranks", [2, 3, 4])
@pytest.mark.parametrize("quantization", ["none", "int8", "int4"])
def test_three_kv_heads_are_split_between_any_ranks(
    kernels: Any, tmp_path: Path, quantization: Quantization, num_ranks: int
) -> None:
    write_tiny_llama(tmp_path / "m.gguf", model=tiny_llama(**THREE_KV_HEADS))
    assert_equal_bits(
        open_checkpoint(tmp_path / "m.gguf"),
        num_ranks,
        torch.bfloat16,
        lambda config: CpuLlama(config, kernels, quantization),
        kernels,
    )


@pytest.mark.slow
@pytest.mark.parametrize("num_ranks", [2, 3, 4])
@pytest.mark.parametrize("quantization", ["native", "int8", "int4"])
@pytest.mark.parametrize("is_tied", [True, False])
def test_weights_in_blocks_are_split(
    kernels: Any, tmp_path: Path, quantization: Quantization, num_ranks: int, is_tied: bool
) -> None:
    kinds = [kind for kind in BLOCK_SIZES if kind != NVFP4_WITH_FACTOR]
    path = write_blocks(tmp_path / "m.gguf", kinds, tie_embeddings=is_tied, num_layers=3)
    assert_equal_bits(
        open_checkpoint(path),
        num_ranks,
        torch.bfloat16,
        lambda config: CpuLlama(config, kernels, quantization),
        kernels,
    )


def test_weights_on_one_grid_are_split(kernels: Any, tmp_path: Path) -> None:
    for kind in ("Q4_0", "Q4_1", "Q8_0"):
        checkpoint = open_checkpoint(write_blocks(tmp_path / f"{kind}.gguf", [kind]))
        assert_ranks_read_the_whole(checkpoint)
        for make_model in (
            lambda config: CpuLlama(config, kernels, "int8"),
            lambda config: CpuLlama(config, kernels, "int4"),
        ):
            assert_equal_bits(checkpoint, 3, torch.bfloat16, make_model, kernels)


@pytest.mark.parametrize(
    ("form", "quantization"),
    [("gptq", "native"), ("awq", "int8"), ("int8", "native"), ("float8", "int4"), ("nf4", "none")],
)
def test_quantized_folders_are_split(tmp_path: Path, form: str, quantization: Quantization) -> None:
    kernels = load_kernels()
    sizes = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "num_key_value_heads": 2}
    folder = write_large_folder(tmp_path / form, form, num_attention_heads=4, **sizes)
    assert_equal_bits(
        open_checkpoint(folder), 3, torch.bfloat16, lambda config: CpuLlama(config, kernels, quantization), kernels
    )


@pytest.mark.parametrize(
    "variant",
    [
        *("attention bias", "mistral window", "qwen2", "qwen3 tied", "smollm3 list", "granite", "phi4 mini"),
        *("ministral3", "gemma2 untied", "gemma3 linear"),
    ],
)
def test_relatives_of_llama_are_split(kernels: Any, tmp_path: Path, variant: str) -> None:
    kind, changes = VARIANTS[variant]
    random_model(kind, **changes).save_pretrained(tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    for kv_dtype in (torch.bfloat16, torch.int8):
        assert_equal_bits(
            checkpoint, 4, torch.bfloat16, lambda config: CpuLlama(config, kernels, "none"), kernels, kv_dtype
        )


def test_a_step_fails_as_an_exchange_when_another_rank_is_gone(kernels: Any, tmp_path: Path) -> None:
    write_tiny_llama(tmp_path / "m.gguf")
    checkpoint = open_checkpoint(tmp_path / "m.gguf")

    def run(share: Share, exchange: Exchange) -> None:
        model = load_model(
            checkpoint,
            torch.bfloat16,
            CPU,
            128,
            lambda config: CpuLlama(config, kernels, "none"),
            share=share,
            exchange=exchange,
        )
        step_logits(model, share)
        if share.rank == 1:
            return  # and leave
        for _ in range(2):
            with pytest.raises(ExchangeFailed, match="rank 1 has left"):
                step_logits(model, share)

    on_ranks(2, run, kernels)


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_an_error_of_the_kernels_is_no_failure_of_the_exchange(kernels: Any, tmp_path: Path, num_ranks: int) -> None:
    write_tiny_llama(tmp_path / "m.gguf")
    checkpoint = open_checkpoint(tmp_path / "m.gguf")

    def run(share: Share, exchange: Exchange | None) -> None:
        model = load_model(
            checkpoint,
            torch.bfloat16,
            CPU,
            128,
            lambda config: CpuLlama(config, kernels, "none"),
            share=share,
            exchange=exchange,
        )
        model.embedding.float()  # the kernels take bfloat16
        with pytest.raises(RuntimeError, match="expected scalar type") as raised:
            step_logits(model, share)
        assert not isinstance(raised.value, ExchangeFailed)

    if num_ranks == 1:
        run(Share(), None)
    else:
        on_ranks(num_ranks, run, kernels)
