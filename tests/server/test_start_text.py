"""The start-up text: five short lines with the model, the room, the page, the chat and the API."""

import msgspec
import pytest

from caravan.scheduler.config import EngineConfig
from caravan.scheduler.memory_needs import MemoryNeeds, MemoryPlan
from caravan.scheduler.messages import EngineReady
from caravan.server.start_text import models_text, start_text

CONFIG = EngineConfig(num_blocks=65_536, max_model_len=8192)
REPORT = EngineReady(
    config=CONFIG,
    vocab_size=49_152,
    num_parameters=134_515_008,
    weight_bytes=98_362_432,
    kv_cache_bytes=24_159_191_040,
    kv_cache_dtype="bfloat16",
    weights="native: weights as the file has them, products in 8 bits",
    load_seconds=0.4,
)


def text_for(address: str = "http://127.0.0.1:8000", *, is_demo: bool = False, **changes: object) -> str:
    report = msgspec.structs.replace(REPORT, **changes)
    return start_text(report, "SmolLM2-135M-Instruct.Q4_1.gguf", ("smollm2",), address, is_demo=is_demo)


def test_the_text_is_five_lines_of_80_columns() -> None:
    lines = text_for().splitlines()
    assert max(map(len, lines)) <= 80
    assert lines == [
        "Model    smollm2: SmolLM2-135M-Instruct.Q4_1, 135M parameters, native, 98 MB",
        "KV pool  1,048,576 tokens in 65,536 blocks of 16 (24,159 MB) in bfloat16",
        "Room     for 128 requests of 8,192 tokens, twice the 64 that run at once",
        "Chat     http://127.0.0.1:8000 in a browser, or: caravan chat",
        "Ready    http://127.0.0.1:8000/v1 for OpenAI clients; its reference is at /docs",
    ]


def test_commands_name_an_address_that_is_not_the_default() -> None:
    assert "or: caravan chat --url https://10.0.0.1:9000\n" in text_for("https://10.0.0.1:9000")


def test_a_file_that_the_model_is_named_after_is_not_repeated() -> None:
    assert start_text(REPORT, "tiny.gguf", ("tiny",), "http://h").startswith("Model    tiny: 135M parameters, native, ")


def test_a_demo_says_where_to_watch() -> None:
    line = "Watch    http://127.0.0.1:1/#engine in a browser, or: caravan top --url http://127.0.0.1:1"
    assert line in text_for("http://127.0.0.1:1", is_demo=True).splitlines()


def test_a_unix_socket_has_no_page() -> None:
    text = text_for("unix:/run/caravan")
    assert "browser" not in text
    assert text.endswith("\nReady    unix:/run/caravan with /v1 for OpenAI clients; its reference is at /docs")


def test_a_merged_adapter_has_a_line() -> None:
    text = text_for(adapter="poems, rank 8, merged into 60 matrices (q_proj, v_proj)")
    assert "\nLoRA     poems, rank 8, merged into 60 matrices (q_proj, v_proj)\nKV pool" in text


def test_ranks_and_a_draft_model_have_lines() -> None:
    text = text_for(config=msgspec.structs.replace(CONFIG, num_ranks=2), draft_model="tiny (4 MB)")
    assert "\nRanks    2 processes, each with a part of it\nDraft    tiny (4 MB)\n" in text


@pytest.mark.parametrize(
    ("weights", "shown"),
    [
        ("bfloat16", "bfloat16"),
        ("float32, plain PyTorch", "float32, plain PyTorch"),
        ("native: as the file has them, multiplied in bfloat16, on NVIDIA H200", "native, on NVIDIA H200"),
        ("bfloat16, multiplied by cuBLAS, on NVIDIA H200", "bfloat16, multiplied by cuBLAS, on NVIDIA H200"),
    ],
)
def test_the_weights_are_named_in_a_word(weights: str, shown: str) -> None:
    assert f"135M parameters, {shown}, 98 MB\n" in text_for(weights=weights)


def test_another_pool_has_room_for_short_and_long_requests() -> None:
    config = msgspec.structs.replace(CONFIG, num_blocks=32_000)
    assert "\nRoom     for 62 requests of 8,192 tokens or 500 of 1,024; 64 run at once\n" in text_for(config=config)


def test_a_short_context_is_named_once() -> None:
    config = EngineConfig(num_blocks=64, max_model_len=512)
    assert "\nRoom     for 2 requests of 512 tokens; 64 run at once\n" in text_for(config=config)
    config = EngineConfig(num_blocks=32, max_model_len=512)
    assert "\nRoom     for 1 request of 512 tokens; 64 run at once\n" in text_for(config=config)


def test_several_models_have_a_line_each() -> None:
    needs = MemoryNeeds(config=CONFIG, vocab_size=1, weight_bytes=10**9, kv_cache_bytes=2 * 10**9, rest_bytes=0)
    plan = MemoryPlan(budget_bytes=8 * 10**9, needs=[needs, needs])
    lines = models_text(plan, [("a", "b"), ("c",)], "http://127.0.0.1:8000").splitlines()
    assert lines[0] == "Models   2 in 8,000 MB, each loaded when it gets a request"
    assert lines[1].startswith("Name     a, b: 3,000 MB (weights 1,000, KV pool 2,000 for 1,048,576 tokens)")
    assert len(lines) == 5
