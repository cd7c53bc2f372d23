"""A model that is split between ranks: its logits are those of one process, to the last bit, from every format."""

from pathlib import Path
from typing import Any

import pytest
import torch

from caravan.model.exchange import Exchange
from caravan.model.loader import load_model, open_checkpoint
from caravan.model.share import Share
from tests.model.checkpoint.published_formats import write_gguf, write_llama2c, write_meta
from tests.support.ranks import CPU, assert_equal_bits, assert_ranks_read_the_whole, on_ranks
from tests.support.transformers_models import VARIANTS, random_model

RELATIVES = (
    *("mistral window", "qwen2", "qwen3 tied", "smollm3 list", "granite", "phi4 mini"),
    *("ministral3", "gemma2 untied", "gemma3 linear"),
)
META = {"intermediate_size": 128, "rms_norm_eps": 1e-5}
THREE_KV_HEADS = {"hidden_size": 72, "num_attention_heads": 9, "num_key_value_heads": 3}


@pytest.mark.parametrize("num_ranks", [2, 3, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_three_kv_heads_are_split_between_any_ranks(tmp_path: Path, num_ranks: int, dtype: torch.dtype) -> None:
    random_model("Llama", **THREE_KV_HEADS).save_pretrained(tmp_path)
    assert_equal_bits(open_checkpoint(tmp_path), num_ranks, dtype)


@pytest.mark.parametrize("variant", [*("mha", "mqa", "tied", "attention bias"), *RELATIVES])
def test_relatives_of_llama_are_split(tmp_path: Path, variant: str) -> None:
    kind, changes = VARIANTS[variant]
    random_model(kind, **changes).save_pretrained(tmp_path)
    assert_equal_bits(open_checkpoint(tmp_path), 3)


def test_keys_and_values_of_eight_bits_are_split(tmp_path: Path) -> None:
    random_model("Llama", **THREE_KV_HEADS).save_pretrained(tmp_path)
    assert_equal_bits(open_checkpoint(tmp_path), 2, kv_dtype=torch.int8)


@pytest.mark.parametrize("is_tied", [True, False])
def test_a_rank_reads_its_rows_from_every_format(tmp_path: Path, is_tied: bool) -> None:
    oracle = random_model("Llama", tie_word_embeddings=is_tied, **META)
    oracle.save_pretrained(tmp_path / "hf")
    write_gguf(tmp_path / "m.gguf", oracle, "llama")
    for version in range(3):
        write_llama2c(tmp_path / f"v{version}.bin", oracle, version=version)
    write_meta(tmp_path / "meta", oracle)
    write_meta(tmp_path / "columns", oracle, num_shards=2)
    write_meta(tmp_path / "rows", oracle, num_shards=2, splits_embedding_by_rows=True)
    for name in ("hf", "m.gguf", "v0.bin", "v1.bin", "v2.bin", "meta", "columns", "rows"):
        assert_ranks_read_the_whole(open_checkpoint(tmp_path / name))


def test_a_rank_reads_its_biases_and_whole_norms(tmp_path: Path) -> None:
    oracle = random_model("Qwen3", **VARIANTS["qwen3 tied"][1])
    oracle.save_pretrained(tmp_path / "hf")
    write_gguf(tmp_path / "m.gguf", oracle, "qwen3")
    for name in ("hf", "m.gguf"):
        assert_ranks_read_the_whole(open_checkpoint(tmp_path / name))


def test_a_rank_needs_the_exchange_of_its_share(tmp_path: Path) -> None:
    random_model("Llama").save_pretrained(tmp_path)
    checkpoint = open_checkpoint(tmp_path)

    def load(share: Share | None, exchange: Exchange | None) -> Any:
        return load_model(checkpoint, torch.float32, CPU, 64, share=share, exchange=exchange)

    with pytest.raises(ValueError, match="Rank 1 of 2 needs an exchange"):
        load(Share(1, 2), None)

    def run(share: Share, exchange: Exchange) -> None:
        with pytest.raises(ValueError, match=f"rank 2 of 3, the exchange that of rank {share.rank} of 2"):
            load(Share(2, 3), exchange)

    on_ranks(2, run)


def test_norms_over_all_heads_are_not_split(tmp_path: Path) -> None:
    random_model("Olmo2").save_pretrained(tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    Share(0, 1).check(checkpoint.config)
    with pytest.raises(ValueError, match=r"query and key norms over all heads cannot be split .* --tensor-parallel\.$"):
        Share(0, 2).check(checkpoint.config)


def test_a_model_with_fewer_heads_than_ranks_is_refused(tmp_path: Path) -> None:
    random_model("Llama").save_pretrained(tmp_path)
    checkpoint = open_checkpoint(tmp_path)

    def run(share: Share, exchange: Exchange) -> None:
        with pytest.raises(ValueError, match="4 query heads .* at most 4 ranks; there are 5"):
            load_model(checkpoint, torch.float32, CPU, 64, share=share, exchange=exchange)

    on_ranks(5, run)
