"""Draft models at the start of an engine: the check of their vocabulary, their memory, and their use."""

from pathlib import Path
from typing import Any

import pytest

from caravan.model.loader import open_checkpoint
from caravan.scheduler.config import EngineLimits
from caravan.scheduler.draft_loading import check_vocabulary, open_draft
from caravan.scheduler.loaded_model import start_engine
from caravan.scheduler.messages import StartEngine
from tests.model.vocabularies import gpt2_metadata
from tests.scheduler.requests import make_request
from tests.support.gguf_files import write_tiny_llama
from tests.support.tiny_llama import run_to_end, tiny_llama

pytestmark = pytest.mark.slow

LIMITS = EngineLimits(kv_cache_memory_bytes=2**20, max_model_len=256)
TOKENS: Any = gpt2_metadata()["tokenizer.ggml.tokens"]


def write_draft(path: Path, tokens: list[str] = TOKENS, **changes: Any) -> Path:
    """Write a model of one layer with the vocabulary of the tiny model, or with other tokens."""
    shape = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 16, "num_layers": 1} | changes
    metadata = gpt2_metadata() | {"tokenizer.ggml.tokens": tokens}
    types: Any = metadata["tokenizer.ggml.token_type"]
    model = tiny_llama(vocab_size=len(tokens), **shape)
    more = {"tokenizer.ggml.token_type": [*types, *[1] * (len(tokens) - len(types))], "llama.vocab_size": len(tokens)}
    write_tiny_llama(path, model=model, metadata=metadata | more)
    return path


def test_an_engine_loads_a_draft_model_and_counts_its_memory(tiny_model_path: Path, tmp_path: Path) -> None:
    draft_path = write_draft(tmp_path / "small.gguf", max_position=128)
    alone, ready_alone, _ = start_engine(StartEngine(model_path=str(tiny_model_path), limits=LIMITS))
    start = StartEngine(model_path=str(tiny_model_path), draft_model_path=str(draft_path), limits=LIMITS)
    engine, ready, _ = start_engine(start)
    assert ready.draft_model.startswith("small.gguf: 0 million parameters")
    assert ready.config.max_draft_model_len == 128
    assert ready.config.num_blocks == ready_alone.config.num_blocks * 2 // 3  # a layer more beside two
    assert ready.kv_cache_bytes <= 2**20
    assert [len(kv_cache.keys) for kv_cache in engine.kv_caches] == [2, 1]
    requests = [make_request(number, [5, 6, 7, number], max_tokens=60) for number in range(3)]
    assert run_to_end(engine, requests) == run_to_end(alone, requests)
    again, ready_again, _ = start_engine(
        StartEngine(
            model_path=str(tiny_model_path),
            draft_model_path=str(draft_path),
            limits=EngineLimits(kv_cache_memory_bytes=ready.kv_cache_bytes, max_model_len=256),
        )
    )
    assert ready_again.config.num_blocks == ready.config.num_blocks  # after a crash
    assert again.scheduler.config == engine.scheduler.config


def test_a_draft_model_with_another_vocabulary_is_rejected(tiny_model_path: Path, tmp_path: Path) -> None:
    target = open_checkpoint(tiny_model_path)
    check_vocabulary(open_draft(write_draft(tmp_path / "same.gguf"), target), target)
    other = [*TOKENS[:-4], "elsewhere", *TOKENS[-3:]]
    with pytest.raises(ValueError, match=rf"token {len(TOKENS) - 4} is b'elsewhere', in the model b'.*same vocabulary"):
        open_draft(write_draft(tmp_path / "other.gguf", other), target)


def test_a_draft_model_with_another_number_of_tokens_is_rejected(tiny_model_path: Path, tmp_path: Path) -> None:
    path = write_draft(tmp_path / "larger.gguf", [*TOKENS, "more"])
    with pytest.raises(ValueError, match=rf"--draft-model: it has {len(TOKENS) + 1} tokens, the model {len(TOKENS)}"):
        open_draft(path, open_checkpoint(tiny_model_path))


def test_a_draft_model_that_cannot_be_read_is_named(tiny_model_path: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.gguf").write_bytes(b"GGUF")
    with pytest.raises(ValueError, match=r"--draft-model: .*broken\.gguf"):
        open_draft(tmp_path / "broken.gguf", open_checkpoint(tiny_model_path))
