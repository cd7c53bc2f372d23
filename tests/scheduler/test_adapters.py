"""Requests with adapters: each gets the bits that it gets alone, and those without one the bits of today."""

import gc
import shutil
import threading
import weakref
from concurrent.futures import wait
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
import torch

from caravan.model.checkpoint.adapter_digest import adapter_digest
from caravan.model.llama import Llama
from caravan.scheduler.config import MAX_RESIDENT_ADAPTERS, EngineLimits
from caravan.scheduler.engine import Engine
from caravan.scheduler.loaded_model import load, start_engine
from caravan.scheduler.messages import AdapterSource, Request, StartEngine, StepOutput
from caravan.scheduler.resident_adapters import ResidentAdapters
from tests.scheduler.requests import make_request
from tests.support.lora_folders import ALL_LINEAR, change_config, write_adapter
from tests.support.tiny_llama import Transcript, run_to_end
from tests.support.tokenizer_files import byte_level_json
from tests.support.transformers_models import VARIANTS, random_model

pytestmark = pytest.mark.slow

KINDS = [("float32", "none"), ("bfloat16", "none"), ("bfloat16", "int8"), ("bfloat16", "int4")]
LIMITS = EngineLimits(kv_cache_memory_bytes=2**22, max_model_len=128, max_batch_tokens=64)
NAMES = ("", "poems", "code", "", "chat", "poems", "code", "")


class Files(NamedTuple):
    """A model and adapters on disk."""

    model: Path
    adapters: list[AdapterSource]

    def start(self, dtype: str = "float32", quantization: str = "none", **changes: Any) -> StartEngine:
        options: dict[str, Any] = {"dtype": dtype, "quantization": quantization, "limits": LIMITS} | changes
        return StartEngine(model_path=str(self.model), **{"adapters": self.adapters} | options)


def source(name: str, folder: Path) -> AdapterSource:
    return AdapterSource(name=name, path=str(folder), digest=adapter_digest(folder))


def write_files(folder: Path, variant: str = "llama", **changes: Any) -> Files:
    kind, fields = VARIANTS[variant]
    oracle = random_model(kind, **{**fields, **changes})
    oracle.save_pretrained(folder / "model")
    fused = hasattr(oracle.model.layers[0].self_attn, "qkv_proj")
    targets = ("qkv_proj", "gate_up_proj", "o_proj", "down_proj") if fused else ALL_LINEAR
    adapters = [
        source("poems", write_adapter(folder / "poems", oracle, targets, seed=1)),
        source("code", write_adapter(folder / "code", oracle, targets[:1], seed=2, r=17, lora_alpha=30)),
        source("chat", write_adapter(folder / "chat", oracle, targets[-1:], seed=3, r=2)),
    ]
    return Files(folder / "model", adapters)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    files = write_files(tmp_path_factory.mktemp("adapters"), vocab_size=640)
    byte_level_json().save(str(files.model / "tokenizer.json"))  # which a draft model needs
    return files


def engine_for(start: StartEngine) -> Engine:
    return start_engine(start)[0]


def prompt(seed: int, length: int) -> list[int]:
    return torch.randint(0, 300, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def named(request: Request, name: str) -> Request:
    salt = f"adapter {name}\n" if name else ""
    return msgspec.structs.replace(request, adapter=name, cache_salt=salt)


def requests() -> list[Request]:
    """Several adapters, some prompts that begin alike, greedy ones and sampled ones."""
    made = []
    for index, name in enumerate(NAMES):
        tokens = prompt(0, 33) + prompt(index % 4, 3 + 5 * index)
        scored = 1 if index == 5 else None
        temperature = 0.0 if index % 2 else 0.8
        request = make_request(
            index,
            tokens,
            max_tokens=9,
            num_logprobs=2,
            temperature=temperature,
            num_prompt_logprobs=scored,
        )
        made.append(named(request, name))
    return made


def alone(start: StartEngine, request: Request) -> Transcript:
    return run_to_end(engine_for(start), [request])[request.request_id]


@pytest.mark.parametrize(("dtype", "quantization"), KINDS, ids=str)
@pytest.mark.parametrize("arrive_every", [0, 2])
def test_requests_with_and_without_adapters_have_the_bits_that_they_have_alone(
    files: Files, dtype: str, quantization: str, arrive_every: int
) -> None:
    start = files.start(dtype, quantization)
    without = msgspec.structs.replace(start, adapters=[])
    together = run_to_end(engine_for(start), requests(), arrive_every=arrive_every)
    adapted, plain = engine_for(start), engine_for(without)
    for request in requests():
        engine = adapted if request.adapter else plain
        expected = run_to_end(engine, [request])[request.request_id]
        assert expected.finish_reason == "length"
        assert together[request.request_id] == expected, request.adapter


@pytest.mark.parametrize(("dtype", "quantization"), KINDS[:2], ids=str)
def test_small_pools_chunks_and_draft_tokens_change_no_bit(files: Files, dtype: str, quantization: str) -> None:
    start = files.start(dtype, quantization)
    expected = run_to_end(engine_for(start), requests())
    for changes in (
        {"max_batch_tokens": 7},
        {"kv_cache_memory_bytes": 140_000, "max_model_len": 96},
        {"speculation": "off"},
    ):
        changed = msgspec.structs.replace(start, limits=msgspec.structs.replace(LIMITS, **changes))
        assert run_to_end(engine_for(changed), requests(), arrive_every=1) == expected, changes
    drafting = msgspec.structs.replace(start, draft_model_path=str(files.model))
    assert run_to_end(engine_for(drafting), requests()) == expected


@pytest.mark.parametrize("variant", ["llama", "mqa", "attention bias", "qwen3 tied", "phi4 mini", "olmo2", "gemma2"])
def test_an_adapter_of_a_request_is_that_which_is_merged(tmp_path: Path, variant: str) -> None:
    files = write_files(tmp_path, variant)
    for adapter in files.adapters:
        request = make_request(0, prompt(1, 20), num_prompt_logprobs=0, max_tokens=1, num_logprobs=0)
        chosen = alone(files.start(), named(request, adapter.name))
        merged = alone(files.start(adapters=[], merge_lora_path=adapter.path), request)
        base = alone(files.start(), request)
        theirs, ours, plain = ([one.logprob for one in each.prompt_logprobs] for each in (merged, chosen, base))
        assert ours == pytest.approx(theirs, abs=1e-3)
        assert ours != pytest.approx(plain, abs=1e-2)


@pytest.mark.parametrize("variant", ["llama", "gemma2", "olmo2", "ministral3"])
def test_the_kernels_compute_what_pytorch_does(tmp_path: Path, variant: str) -> None:
    files = write_files(tmp_path, variant, vocab_size=640)
    for name in ("poems", "code", "chat"):
        request = named(make_request(0, prompt(1, 30), num_prompt_logprobs=0, max_tokens=1), name)
        base = named(make_request(0, prompt(1, 30), num_prompt_logprobs=0, max_tokens=1), "")
        wide, ours, without = (
            torch.tensor([one.logprob for one in alone(files.start(dtype), asked).prompt_logprobs])
            for dtype, asked in (("float32", request), ("bfloat16", request), ("bfloat16", base))
        )
        assert (ours - wide).norm() < 0.2 * (without - wide).norm(), name


def test_more_adapters_than_slots_take_turns(files: Files) -> None:
    many = [
        msgspec.structs.replace(files.adapters[index % 3], name=f"a{index}")
        for index in range(3 * MAX_RESIDENT_ADAPTERS)
    ]
    start = files.start("bfloat16", adapters=many)
    engine = engine_for(start)
    assert engine.adapters is not None
    asked = [named(make_request(index, prompt(index, 12), max_tokens=20), f"a{index}") for index in range(len(many))]
    most = 0

    def observe(_: object) -> None:
        nonlocal most
        running = {one.request.adapter for one in engine.scheduler.running}
        most = max(most, len(running))
        assert engine.adapters is not None
        assert len(engine.adapters.names) <= MAX_RESIDENT_ADAPTERS
        if engine.adapters._read is not None:  # else short answers would end before the next adapter is there
            wait([engine.adapters._read.put], 60)

    together = run_to_end(engine, asked, on_step=observe)
    assert most == MAX_RESIDENT_ADAPTERS
    for request in asked[::5]:
        assert together[request.request_id] == alone(start, request)


@pytest.fixture
def changing(files: Files, tmp_path: Path) -> Files:
    """Adapters of which one can be changed."""
    folder = Path(shutil.copytree(files.adapters[0].path, tmp_path / "poems"))
    return Files(files.model, [source("poems", folder), *files.adapters[1:]])


def test_an_adapter_that_changes_on_disk_fails_its_own_requests_alone(changing: Files) -> None:
    engine = engine_for(changing.start())
    change_config(Path(changing.adapters[0].path), lora_alpha=1)
    asked = [one for one in requests() if one.request_id < 4]
    together = run_to_end(engine, asked)
    for request in asked:
        transcript = together[request.request_id]
        if request.adapter == "poems":
            assert transcript.finish_reason == "error"
            assert transcript.error
        else:
            assert transcript == alone(changing.start(adapters=changing.adapters[1:]), request)


def test_others_go_on_while_an_adapter_is_read(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    may_read = threading.Event()
    read = ResidentAdapters._put_of

    def late(self: ResidentAdapters, source: AdapterSource) -> Any:
        assert may_read.wait(60)
        return read(self, source)

    monkeypatch.setattr(ResidentAdapters, "_put_of", late)
    start = files.start("bfloat16")
    engine = engine_for(start)
    waiting, other = (named(make_request(number, prompt(number, 20), max_tokens=9), "poems") for number in (0, 1))
    other = msgspec.structs.replace(other, adapter="", cache_salt="")
    waits: list[str | None] = []

    def observe(step: StepOutput) -> None:
        waits.extend(event.reason for event in step.events if event.request_id == 0 and event.kind == "wait")
        if any(output.request_id == 1 and output.finish_reason for output in step.outputs):
            assert engine.adapters is not None
            assert engine.adapters.names == []
            may_read.set()

    together = run_to_end(engine, [waiting, other], on_step=observe)
    assert waits == ["adapter being read"]
    assert together[0] == alone(start, waiting)
    assert together[1] == alone(start, other)


def test_an_adapter_is_added_to_an_engine_that_runs_and_taken_from_it(files: Files) -> None:
    poems, code, _ = files.adapters
    engine = engine_for(files.start("bfloat16", adapters=[poems], max_lora_rank=17))
    adapters = engine.adapters
    assert adapters is not None
    request, new = (named(make_request(number, prompt(number, 20), max_tokens=9), "code") for number in (0, 1))
    request = named(request, "poems")
    transcripts = {0: Transcript(), 1: Transcript()}
    engine.add(request)
    for number in range(200):
        if number == 3:
            assert adapters.check(code).result(60) == ""
            adapters.set_sources([poems, code])
            engine.add(new)
        for output in engine.step().outputs:
            transcripts[output.request_id].take(output)
        if all(one.finish_reason for one in transcripts.values()):
            break
    assert transcripts[0] == alone(files.start("bfloat16"), request)
    assert transcripts[1] == alone(files.start("bfloat16"), new)
    assert {*adapters.names} == {"poems", "code"}
    adapters.set_sources([code])
    assert adapters.names == ["code"]
    gone = run_to_end(engine, [request, new])
    assert "has been unloaded" in str(gone[0].error)
    assert gone[1].token_ids == transcripts[1].token_ids
    adapters.set_sources([])
    assert adapters.names == []


def test_an_adapter_that_is_unloaded_gives_its_memory_back(files: Files) -> None:
    engine = engine_for(files.start("float32"))
    assert engine.adapters is not None
    assert isinstance(engine.model, Llama)
    assert engine.model._plain_adapters is not None
    run_to_end(engine, [named(make_request(0, prompt(1, 20), max_tokens=2), "poems")])
    parts = weakref.ref(next(iter(engine.model._plain_adapters._parts.values()))[0])
    assert parts() is not None
    engine.adapters.set_sources([])
    gc.collect()
    assert parts() is None


def test_threat_42_an_adapter_is_refused_that_is_too_large_or_of_another_model_or_changes(
    files: Files, tmp_path: Path
) -> None:
    engine = engine_for(files.start("bfloat16", adapters=[], max_lora_rank=1))
    assert engine.adapters is not None
    poems, _, chat = files.adapters
    assert engine.adapters.check(chat).result(60) == ""
    other = source("other", write_adapter(tmp_path / "other", random_model("Llama", hidden_size=64, head_dim=16)))
    kind, fields = VARIANTS["llama"]
    (tmp_path / "empty").mkdir()
    problems = {
        one.name: engine.adapters.check(one).result(60)
        for one in (
            source("big", write_adapter(tmp_path / "big", random_model(kind, **fields), ALL_LINEAR, r=64)),
            other,
            msgspec.structs.replace(poems, name="changed", digest="0" * 64),
            AdapterSource(name="empty", path=str(tmp_path / "empty"), digest=""),
        )
    }
    assert "but an adapter of --max-lora-rank 1 in all layers only" in problems["big"]
    assert "is for another model" in problems["other"]
    assert "changed while they were read" in problems["changed"]
    assert problems["empty"] == "empty has no adapter_config.json."
    assert not any(str(tmp_path) in problem or str(files.model) in problem for problem in problems.values())


def test_the_pool_leaves_room_for_adapters_that_come_later(files: Files) -> None:
    without, later = (load(files.start(adapters=[], max_lora_rank=rank)).adapters for rank in (0, 16))
    assert without is None
    assert later is not None
    one = load(files.start(adapters=files.adapters[:1])).adapters  # in all layers, its rank padded to 16
    assert one is not None
    assert later.max_bytes == MAX_RESIDENT_ADAPTERS * one.max_bytes


def test_a_replacement_starts_though_an_adapter_is_gone(changing: Files) -> None:
    shutil.rmtree(changing.adapters[0].path)
    with pytest.raises(ValueError, match="--lora poems: .* is not a folder"):
        load(changing.start())
    engine = engine_for(changing.start(is_replacement=True))
    asked = [one for one in requests() if one.request_id < 4]
    together = run_to_end(engine, asked)
    assert [together[one.request_id].finish_reason for one in asked] == [
        "error" if one.adapter == "poems" else "length" for one in asked
    ]


def test_threat_41_an_adapter_of_another_model_stops_the_start_by_its_name(files: Files, tmp_path: Path) -> None:
    other = random_model("Llama", hidden_size=64, head_dim=16)
    bad = source("bad", write_adapter(tmp_path / "bad", other))
    with pytest.raises(ValueError, match=r"--lora bad: .* is for another model"):
        load(files.start(adapters=[files.adapters[0], bad]))
    with pytest.raises(ValueError, match="--lora cannot be combined with --tensor-parallel"):
        load(files.start(num_ranks=2))


def test_prefixes_are_shared_within_an_adapter_only(files: Files) -> None:
    engine = engine_for(files.start())
    tokens = prompt(5, 64)
    cached = {}
    for request_id, name in enumerate(("", "poems", "", "poems", "code")):
        request = named(make_request(request_id, tokens, max_tokens=1), name)
        cached[request_id] = run_to_end(engine, [request])[request_id].num_cached_tokens
    assert [cached[request_id] > 0 for request_id in range(5)] == [False, False, True, True, False]
