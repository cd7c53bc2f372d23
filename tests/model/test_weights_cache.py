"""Packed weights in the cache: bit-equal models, files that are not used, and the limits of the folder."""

import errno
import fcntl
import hashlib
import logging
import os
import shutil
import stat
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import msgspec
import numpy as np
import pytest
import torch

from caravan.model import weights_files
from caravan.model.backend import choose_backend
from caravan.model.cpu import weights_cache, weights_data, weights_key
from caravan.model.cpu.linear import PackedLinear
from caravan.model.cpu.llama import CpuLlama
from caravan.model.cpu.weights_cache import WeightsCache
from caravan.model.exchange import Exchange
from caravan.model.llama import Llama
from caravan.model.loader import load_model, open_checkpoint
from caravan.model.share import Share
from caravan.model.weights_header import UnusableWeights, WeightsHeader, encode_header, open_weights, read_header
from tests.model.oracle import logits_of_every_position
from tests.support.gguf_blocks import random_blocks
from tests.support.gguf_files import Tensors, write_tiny_llama
from tests.support.ranks import on_ranks, step_logits
from tests.support.tiny_llama import tiny_llama
from tests.support.transformers_models import random_model

LIMIT = 2**30
TICK_SECONDS = 0.02  # several ticks of the clock of files: a model that changes in the tick of the start is not kept
PROMPT = torch.randint(0, 270, (40,), generator=torch.Generator().manual_seed(1)).tolist()
MIXED = {"": "Q4_K", "attn_v": "Q6_K", "blk.1.ffn_down": "Q8_0"}


def write_model(path: Path, kinds: dict[str, str] | None = None, **changes: Any) -> Path:
    """Write a GGUF file of two layers; `kinds` are the kinds of blocks of its matrices by part of their names."""

    def change(tensors: Tensors) -> None:
        for seed, name in enumerate(list(tensors)):
            kind = [kind for part, kind in (kinds or {}).items() if part in name][-1:]
            if kind and tensors[name][0].ndim == 2:
                rows, width = tensors[name][0].shape
                blocks = random_blocks(kind[0], rows, width, seed)
                tensors[name] = (blocks, gguf.GGMLQuantizationType[kind[0]])

    sizes = {"hidden_size": 256, "intermediate_size": 512, "head_dim": 64, "vocab_size": 278}
    write_tiny_llama(path, model=tiny_llama(**(sizes | changes)), change=change)
    return path


def write_folder(path: Path) -> Path:
    random_model("Qwen2", hidden_size=64, intermediate_size=96, head_dim=16, vocab_size=300).save_pretrained(path)
    return path


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    return {"XDG_CACHE_HOME": str(tmp_path / "cache")}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache/caravan/weights"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model.gguf", MIXED)


@pytest.fixture(autouse=True)
def lines(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO)
    return caplog


def load(path: Path, cache: WeightsCache | None, quantization: Any = "auto") -> Llama:
    checkpoint = open_checkpoint(path)
    backend = choose_backend(checkpoint, dtype="auto", quantization=quantization, block_size=16)
    return load_model(checkpoint, backend.dtype, torch.device("cpu"), 64, backend.make_model, cache)


def opened(environ: dict[str, str], limit_bytes: int = LIMIT) -> WeightsCache:
    time.sleep(TICK_SECONDS)
    return WeightsCache(limit_bytes, environ, min_bytes=1)


def keep(path: Path, environ: dict[str, str], quantization: Any = "auto", limit_bytes: int = LIMIT) -> Llama:
    """Load a model and write its weights into the cache if they are not mapped."""
    cache = opened(environ, limit_bytes)
    model = load(path, cache, quantization)
    cache.write()
    return model


def mapped(path: Path, environ: dict[str, str], quantization: Any = "auto") -> Llama | None:
    """Return the model if its weights are mapped."""
    cache = opened(environ)
    model = load(path, cache, quantization)
    return model if cache.mapped_bytes else None


def cpu_llama(model: Llama) -> CpuLlama:
    assert isinstance(model, CpuLlama)
    return model


def kept(folder: Path) -> Path:
    (file,) = folder.iterdir()
    return file


def warnings_in(lines: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in lines.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize("quantization", ["none", "native", "int8", "int4"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("kinds", [{}, MIXED], ids=["float", "blocks"])
def test_mapped_weights_give_the_same_bits(
    tmp_path: Path, environ: dict[str, str], quantization: str, tied: bool, kinds: dict[str, str]
) -> None:
    path = write_model(tmp_path / "model.gguf", kinds, tie_embeddings=tied)
    expected = logits_of_every_position(load(path, None, quantization), PROMPT)
    packed = keep(path, environ, quantization)
    again = mapped(path, environ, quantization)
    assert again is not None
    assert torch.equal(logits_of_every_position(packed, PROMPT), expected)
    assert torch.equal(logits_of_every_position(again, PROMPT), expected)
    sizes = {name: (weight.shape, weight.dtype) for name, weight in packed.named_parameters()}
    assert {name: (weight.shape, weight.dtype) for name, weight in again.named_parameters()} == sizes


def test_each_rank_maps_its_own_weights(path: Path, environ: dict[str, str], folder: Path) -> None:
    checkpoint = open_checkpoint(path)
    backend = choose_backend(checkpoint, dtype="auto", quantization="auto", block_size=16)

    def run(share: Share, exchange: Exchange) -> tuple[torch.Tensor, int]:
        cache = opened(environ)
        model = load_model(
            checkpoint,
            backend.dtype,
            torch.device("cpu"),
            128,
            backend.make_model,
            cache,
            share=share,
            exchange=exchange,
        )
        logits = step_logits(model, share)
        cache.write()
        return logits, cache.mapped_bytes

    keep(path, environ)
    packed, again = on_ranks(2, run), on_ranks(2, run)
    assert [num_bytes for _, num_bytes in packed] == [0, 0]
    assert all(num_bytes for _, num_bytes in again)
    assert all(torch.equal(logits, packed[0][0]) for logits, _ in (*packed, *again))
    assert len(list(folder.iterdir())) == 3  # with that of the model in one process


def test_a_folder_with_biases_is_kept_too(tmp_path: Path, environ: dict[str, str]) -> None:
    path = write_folder(tmp_path / "folder")
    packed = keep(path, environ)
    again = mapped(path, environ)
    assert again is not None
    expected = logits_of_every_position(packed, PROMPT)
    assert torch.equal(logits_of_every_position(again, PROMPT), expected)


def test_a_split_file_is_known_by_all_its_parts(tmp_path: Path, environ: dict[str, str]) -> None:
    whole = open_checkpoint(write_model(tmp_path / "model.gguf"))
    assert whole.files == (tmp_path / "model.gguf",)
    folder = open_checkpoint(write_folder(tmp_path / "folder"))
    packed = load(tmp_path / "folder", None)
    assert isinstance(packed, CpuLlama)
    key = weights_key.weights_key(folder, packed, torch.bfloat16)
    assert len(key.files) == len(list((tmp_path / "folder").iterdir())) > 1


def test_mapped_weights_are_read_from_the_file_and_from_no_copy(path: Path, environ: dict[str, str]) -> None:
    keep(path, environ)
    model = mapped(path, environ)
    assert model is not None
    regions: list[tuple[range, str]] = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        if ".weights" in line:
            extent, mode = line.split()[:2]
            regions.append((range(*(int(end, 16) for end in extent.split("-"))), mode))
    for module in model.modules():
        for part in module.parts if isinstance(module, PackedLinear) else ():
            address = part.packed.data_ptr()
            assert address % 64 == 0
            assert [mode for extent, mode in regions if address in extent] == ["r--s"]


def test_the_log_says_what_happened_and_how_long_it_took(
    path: Path, environ: dict[str, str], folder: Path, lines: pytest.LogCaptureFixture
) -> None:
    keep(path, environ)
    keep(path, environ)
    packed, written, found = lines.messages
    assert packed.startswith("The weights (")
    assert packed.endswith(" s.")
    assert written.startswith(f"The packed weights were written to {kept(folder)} in ")
    assert found.startswith("The packed weights (")
    assert f"were mapped from {kept(folder)} in " in found


def test_only_the_user_can_read_the_file(path: Path, environ: dict[str, str], folder: Path) -> None:
    keep(path, environ)
    assert stat.S_IMODE(kept(folder).stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_small_models_and_models_in_plain_pytorch_are_not_kept(
    path: Path, environ: dict[str, str], folder: Path, lines: pytest.LogCaptureFixture
) -> None:
    cache = WeightsCache(LIMIT, environ)
    load(path, cache)
    cache.write()
    assert not lines.messages
    plain = opened(environ)
    load_model(open_checkpoint(path), torch.float32, torch.device("cpu"), 64, cache=plain)
    plain.write()
    assert not lines.messages
    assert not folder.exists()


def test_a_limit_of_zero_reads_and_writes_nothing(path: Path, environ: dict[str, str], folder: Path) -> None:
    keep(path, environ, limit_bytes=0)
    assert not folder.exists()
    keep(path, environ)
    cache = opened(environ, 0)
    load(path, cache)
    assert cache.mapped_bytes == 0
    assert kept(folder).is_file()


def flip(file: Path, place: int) -> None:
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)


def link_elsewhere(file: Path) -> None:
    file.rename(file.parent.parent / "other")
    file.symlink_to(file.parent.parent / "other")


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (lambda file: file.write_bytes(b""), "it is not a file of packed weights"),
    "cut in the prefix": (lambda file: os.truncate(file, 30), "it is not a file of packed weights"),
    "cut in the header": (lambda file: os.truncate(file, 200), "its header is damaged"),
    "cut": (lambda file: os.truncate(file, file.stat().st_size - 1), "bytes; there should be"),
    "longer": (lambda file: file.write_bytes(file.read_bytes() + b"x"), "bytes; there should be"),
    "another beginning": (lambda file: flip(file, 0), "it is not a file of packed weights"),
    "an endless header": (lambda file: flip(file, 23), "it is not a file of packed weights"),
    "another header": (lambda file: flip(file, 100), "its header is damaged"),
    "another first byte": (lambda file: flip(file, file.stat().st_size // 2), "its data is damaged"),
    "another last byte": (lambda file: flip(file, -1), "its data is damaged"),
    "writable by others": (lambda file: file.chmod(0o620), "other users can write to it (mode 620)"),
    "a link": (link_elsewhere, "Too many levels of symbolic links"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_threat_25_a_damaged_file_is_one_warning_and_is_written_again(
    path: Path, environ: dict[str, str], folder: Path, lines: pytest.LogCaptureFixture, damage: str
) -> None:
    spoil, says = DAMAGES[damage]
    expected = logits_of_every_position(keep(path, environ), PROMPT)
    spoil(kept(folder))
    model = keep(path, environ)
    (warning,) = warnings_in(lines)
    assert warning.startswith(f"The packed weights in {kept(folder)} are not used: ")
    assert says in warning
    assert warning.endswith(". The weights are packed again.")
    assert torch.equal(logits_of_every_position(model, PROMPT), expected)
    again = mapped(path, environ)
    assert again is not None
    assert torch.equal(logits_of_every_position(again, PROMPT), expected)


def test_threat_33_a_file_of_another_user_is_not_used(
    path: Path, environ: dict[str, str], lines: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep(path, environ)
    user = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: user + 1)
    assert mapped(path, environ) is None
    assert f"it belongs to the user {user}" in warnings_in(lines)[0]


def test_threat_33_the_file_of_another_model_under_the_right_name_is_not_used(
    path: Path, tmp_path: Path, environ: dict[str, str], folder: Path, lines: pytest.LogCaptureFixture
) -> None:
    keep(path, environ)
    name = kept(folder).name
    other = write_model(tmp_path / "other.gguf", MIXED, num_layers=3)
    keep(other, environ)
    (foreign,) = (file for file in folder.iterdir() if file.name != name)
    foreign.replace(folder / name)
    assert mapped(path, environ) is None
    assert "it is of another model or version" in warnings_in(lines)[0]


def test_a_folder_in_place_of_the_file_is_reported_and_the_model_still_runs(
    path: Path, environ: dict[str, str], folder: Path, lines: pytest.LogCaptureFixture
) -> None:
    expected = logits_of_every_position(keep(path, environ), PROMPT)
    file = kept(folder)
    file.unlink()
    file.mkdir()
    assert torch.equal(logits_of_every_position(keep(path, environ), PROMPT), expected)
    read, written = warnings_in(lines)
    assert "it is not a regular file" in read
    assert "cannot be kept" in written


@pytest.mark.parametrize("in_place", [True, False], ids=["written in place", "replaced"])
def test_a_changed_model_is_packed_again_and_its_old_file_is_removed(
    path: Path, tmp_path: Path, environ: dict[str, str], folder: Path, in_place: bool
) -> None:
    keep(path, environ)
    old, status = kept(folder), path.stat()
    changed = write_model(tmp_path / "changed.gguf", {"": "Q4_K", "attn_v": "Q6_K", "blk.0.ffn_down": "Q8_0"})
    assert changed.stat().st_size == status.st_size
    if in_place:
        path.write_bytes(changed.read_bytes())
    else:
        changed.replace(path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))  # as a program that copies does
    expected = logits_of_every_position(load(path, None), PROMPT)
    assert mapped(path, environ) is None
    assert torch.equal(logits_of_every_position(keep(path, environ), PROMPT), expected)
    assert kept(folder) != old


def test_a_moved_model_keeps_its_weights_if_nothing_else_changed(
    path: Path, tmp_path: Path, environ: dict[str, str]
) -> None:
    keep(path, environ)
    link = tmp_path / "link.gguf"
    link.symlink_to(path)
    assert mapped(link, environ) is not None


@pytest.mark.parametrize("change", ["code", "library", "processor", "quantization"])
def test_other_code_libraries_processors_and_modes_have_files_of_their_own(
    path: Path, environ: dict[str, str], folder: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    keep(path, environ)
    if change == "code":
        copy = folder.parent / "model"
        shutil.copytree(Path(weights_key.__file__).parents[1], copy)
        with (copy / "cpu/packing.py").open("a") as file:
            file.write("\n")
        monkeypatch.setattr(weights_key, "_SOURCES", copy)
    elif change == "library":
        monkeypatch.setattr("importlib.metadata.version", lambda name: "0")
    elif change == "processor":
        monkeypatch.setattr(weights_key, "processor_features", lambda: {"architecture": "other"})
    quantization = "int8" if change == "quantization" else "auto"
    assert mapped(path, environ, quantization) is None
    keep(path, environ, quantization)
    assert mapped(path, environ, quantization) is not None
    assert len(list(folder.iterdir())) == 2


def test_a_file_that_another_engine_has_written_is_not_written_again(
    path: Path, environ: dict[str, str], folder: Path, lines: pytest.LogCaptureFixture
) -> None:
    first, second = opened(environ), opened(environ)
    load(path, first)
    load(path, second)
    first.write()
    inode = kept(folder).stat().st_ino
    second.write()
    assert kept(folder).stat().st_ino == inode
    assert lines.messages[-1] == f"The packed weights were written to {kept(folder)} by another engine."


def test_a_model_that_changes_while_it_is_loaded_is_not_kept(
    path: Path, environ: dict[str, str], folder: Path, lines: pytest.LogCaptureFixture
) -> None:
    cache = opened(environ)
    load(path, cache)
    path.touch()
    cache.write()
    assert warnings_in(lines) == [f"The packed weights are not kept: {path} changed while it was loaded."]
    early = opened(environ)
    time.sleep(TICK_SECONDS)
    path.touch()  # after the engine has started, before it reads the file
    load(path, early)
    early.write()
    assert len(warnings_in(lines)) == 2
    assert not folder.exists() or not list(folder.iterdir())


class TestRoom:
    """The limits of the folder."""

    def files(self, tmp_path: Path, environ: dict[str, str], count: int = 3) -> tuple[list[Path], int]:
        """Return models whose weights are kept, the least recently used first, and the size of each file."""
        models = []
        for number in range(count):
            models.append(write_model(tmp_path / f"{number}.gguf", rms_norm_eps=1e-5 * (number + 1)))
            keep(models[-1], environ)
            (new,) = (file for file in self.folder(environ).iterdir() if file.stat().st_mtime > 1e9)
            os.utime(new, (number, number))
        return models, new.stat().st_size

    def folder(self, environ: dict[str, str]) -> Path:
        return weights_files.weights_folder(environ)

    def test_the_least_recently_used_are_removed(self, tmp_path: Path, environ: dict[str, str]) -> None:
        (first, second, third), size = self.files(tmp_path, environ)
        assert mapped(first, environ) is not None  # which makes it the latest
        fourth = write_model(tmp_path / "4.gguf", rms_norm_eps=1e-6)
        keep(fourth, environ, limit_bytes=3 * size + 4096)
        assert [mapped(model, environ) is not None for model in (first, second, third, fourth)] == [
            True,
            False,
            True,
            True,
        ]

    def test_a_start_with_a_lower_limit_removes_files(self, tmp_path: Path, environ: dict[str, str]) -> None:
        (first, _, third), size = self.files(tmp_path, environ)
        model = keep(third, environ, limit_bytes=size + 4096)
        assert mapped(first, environ) is None
        keep(third, environ, limit_bytes=1)
        assert not list(self.folder(environ).iterdir())
        logits_of_every_position(model, PROMPT)  # what is mapped stays

    def test_a_file_over_the_limit_is_not_written(
        self, path: Path, environ: dict[str, str], lines: pytest.LogCaptureFixture
    ) -> None:
        keep(path, environ, limit_bytes=1000)
        assert lines.messages[-1].startswith("The packed weights are not kept. They take ")
        assert lines.messages[-1].endswith("; --weights-cache-size is 1,000.")
        assert not list(self.folder(environ).iterdir())

    def test_a_disk_that_is_almost_full_is_left_alone(
        self,
        tmp_path: Path,
        environ: dict[str, str],
        lines: pytest.LogCaptureFixture,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        (first, *_), _ = self.files(tmp_path, environ)
        full = shutil.disk_usage(tmp_path)._replace(total=2**30, free=weights_files.MIN_FREE_BYTES)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: full)
        keep(write_model(tmp_path / "4.gguf", rms_norm_eps=1e-6), environ)
        assert f"of which {2**30:,} must stay free." in lines.messages[-1]
        assert mapped(first, environ) is not None

    def test_a_model_that_is_gone_has_its_file_removed(self, tmp_path: Path, environ: dict[str, str]) -> None:
        (first, *_), _ = self.files(tmp_path, environ)
        first.unlink()
        keep(write_model(tmp_path / "4.gguf", rms_norm_eps=1e-6), environ)
        assert len(list(self.folder(environ).iterdir())) == 3

    def test_a_folder_whose_configuration_changed_has_its_file_removed(
        self, tmp_path: Path, environ: dict[str, str]
    ) -> None:
        path = write_folder(tmp_path / "folder")
        keep(path, environ)
        (file,) = weights_files.weights_files(self.folder(environ))
        obsolete = [file.is_obsolete]
        (path / "config.json").write_text((path / "config.json").read_text() + "\n")
        obsolete.append(file.is_obsolete)
        shutil.rmtree(path)
        obsolete.append(file.is_obsolete)
        assert obsolete == [False, True, True]


def test_what_an_interrupted_write_left_is_removed_and_what_another_engine_writes_is_not(
    path: Path, environ: dict[str, str], folder: Path, lines: pytest.LogCaptureFixture
) -> None:
    folder.mkdir(parents=True)
    (folder / "left.part").write_bytes(b"x" * 1000)
    busy = folder / "busy.part"
    with busy.open("wb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        keep(path, environ)
    assert {file.suffix for file in folder.iterdir()} == {".weights", ".part"}
    assert [file.name for file in folder.glob("*.part")] == ["busy.part"]


def test_of_two_engines_that_start_at_once_one_writes(
    path: Path, environ: dict[str, str], folder: Path, lines: pytest.LogCaptureFixture
) -> None:
    first, second = opened(environ), opened(environ)
    models = [load(path, first), load(path, second)]
    folder.mkdir(parents=True)
    first_key = weights_key.weights_key(open_checkpoint(path), cpu_llama(models[0]), torch.bfloat16)
    part = (folder / first_key.file_name).with_suffix(".part")
    with part.open("wb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        second.write()
        assert lines.messages[-1] == "Another engine is writing the packed weights."
        assert part.stat().st_size == 0
    part.unlink()
    first.write()
    expected = logits_of_every_position(models[0], PROMPT)
    again = mapped(path, environ)
    assert again is not None
    for model in (models[1], again):
        assert torch.equal(logits_of_every_position(model, PROMPT), expected)


def test_a_part_that_was_moved_before_it_could_be_locked_is_not_written(tmp_path: Path) -> None:
    part = tmp_path / "x.part"
    part.write_bytes(b"weights")
    with part.open("r+b") as file:
        part.replace(tmp_path / "x.weights")
        assert not weights_files._lock(part, file)
        part.touch()
        assert not weights_files._lock(part, file)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_a_write_that_fails_is_one_line_and_leaves_nothing(
    path: Path,
    environ: dict[str, str],
    folder: Path,
    lines: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
) -> None:
    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(weights_cache, "write_weights", fail)
    model = keep(path, environ)
    (warning,) = warnings_in(lines)
    assert warning == (
        f"The packed weights cannot be kept: [Errno {number}] {os.strerror(number)}. The next start packs them again."
    )
    assert not list(folder.iterdir())
    logits_of_every_position(model, PROMPT)


def test_a_cache_that_cannot_be_written_or_does_not_exist_is_one_line(
    path: Path, tmp_path: Path, lines: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cache").write_text("a file")
    keep(path, {"XDG_CACHE_HOME": str(tmp_path / "cache")})
    (warning,) = warnings_in(lines)
    assert warning.startswith("The packed weights cannot be kept: [Errno 20] Not a directory")
    lines.clear()

    def no_home(_: object) -> Path:
        raise FileNotFoundError(errno.ENOENT, "this user has no home folder", "~/.cache")

    monkeypatch.setattr(weights_cache, "weights_folder", no_home)
    keep(path, {})
    (warning,) = warnings_in(lines)
    assert "no home folder" in warning


def test_samples_cover_each_mib_of_a_tensor_and_its_end() -> None:
    tensor = torch.zeros(3 * 2**20 + 100, dtype=torch.uint8)
    digests = {weights_data.sample_digest([tensor])}
    places = [0, 4095, 2**20, 2 * 2**20 + 4095, 3 * 2**20, len(tensor) - 1]
    for place in places:
        tensor[place] = 1
        digests.add(weights_data.sample_digest([tensor]))
        tensor[place] = 0
    assert len(digests) == 1 + len(places)
    tensor[2**19] = 1  # between samples
    assert weights_data.sample_digest([tensor]) in digests


def test_large_tensors_are_written_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights_data, "_WRITTEN_BYTES", 100)
    monkeypatch.setattr(weights_data, "_SYNCED_BYTES", 250)
    tensors = [torch.arange(256, dtype=torch.uint8).repeat(2)[: 300 + extra] for extra in (0, 20, 84)]
    with (tmp_path / "file").open("wb") as file:
        weights_data.write_weights(file, tensors)
    written = np.fromfile(tmp_path / "file", np.uint8)
    assert len(written) == 320 + 320 + 384
    for start, tensor in zip((0, 320, 640), tensors, strict=True):
        assert written[start : start + len(tensor)].tolist() == tensor.tolist()


def test_a_header_that_does_not_fit_the_data_or_the_model_is_refused(tmp_path: Path, path: Path) -> None:
    packed = load(path, None)
    assert isinstance(packed, CpuLlama)
    stored, tensors, _ = weights_data.stored_tensors(packed)
    checkpoint = open_checkpoint(path)
    backend = choose_backend(checkpoint, dtype="auto", quantization="auto", block_size=16)
    with torch.device("meta"):
        model = backend.make_model(checkpoint.config)
    assert isinstance(model, CpuLlama)
    with pytest.raises(UnusableWeights, match="its tensors are not those of the model"):
        weights_data.place_weights(model, stored[1:], tensors[1:])
    unknown = [msgspec.structs.replace(stored[0], weight_format="Q9_9"), *stored[1:]]
    with pytest.raises(UnusableWeights, match="a weight in an unknown format"):
        weights_data.place_weights(model, unknown, tensors)
    assert all(parameter.is_meta for parameter in model.parameters())

    key = weights_key.weights_key(checkpoint, packed, torch.bfloat16)
    header = WeightsHeader(key=key, model_path="", num_data_bytes=64, tensors=stored, samples="")
    file = tmp_path / "file"
    file.write_bytes(encode_header(header) + bytes(64))
    with open_weights(file) as opened_file:
        found, start = read_header(opened_file)
        assert found == header
        with pytest.raises(UnusableWeights, match=r"is not in it$"):
            weights_data.map_weights(opened_file, start, found)
    text = b"{}"
    file.write_bytes(struct.pack("<16sQ32s", b"caravan weights\n", len(text), hashlib.sha256(text).digest()) + text)
    with open_weights(file) as opened_file, pytest.raises(UnusableWeights, match="its header has another form"):
        read_header(opened_file)


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EFAULT])
def test_a_system_without_the_advice_maps_pages_later_and_a_read_error_is_an_error(number: int) -> None:
    class Mapped(bytes):
        def madvise(self, advice: int, *_: int) -> None:
            raise OSError(number, os.strerror(number))

    mapped_file: Any = Mapped(100)
    if number == errno.EINVAL:
        weights_data._populate(mapped_file, 0, 100)
    else:
        with pytest.raises(OSError, match="Bad address"):
            weights_data._populate(mapped_file, 0, 100)
