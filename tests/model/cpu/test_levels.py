"""Which installed library a processor gets, and when kernels are built instead."""

import os
import platform
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from caravan.model.cpu import build
from caravan.model.cpu.build import KernelsUnavailable, build_kernels, load_kernels
from caravan.model.cpu.levels import LEVELS, Level, best_level
from caravan.model.cpu.linear import Quantization
from caravan.model.cpu.llama import CpuLlama
from tests.model.oracle import logits_of_every_position
from tests.support.tiny_llama import tiny_llama

pytestmark = pytest.mark.slow

AMX, AVX512, AVX2 = LEVELS
HASWELL: dict[str, object] = dict.fromkeys(AVX2.flags_of_features, True)
ICE_LAKE = HASWELL | {f"avx512_{part}": True for part in ("f", "bw", "cd", "dq", "vl", "vnni", "vbmi")}
ZEN_4 = ICE_LAKE | {"avx512_bf16": True, "clwb": True}
SAPPHIRE_RAPIDS = ZEN_4 | {"amx_tile": True, "amx_int8": True, "amx_bf16": True, "avx512_fp16": True}
NO_COMPILER = {"CXX": "no-such-compiler", "PATH": "/nowhere"}
PROMPT = torch.randint(0, 300, (90,), generator=torch.Generator().manual_seed(1)).tolist()

here = best_level(torch.cpu.get_capabilities())
needs_a_level = pytest.mark.skipif(here is None, reason="no library of the wheel runs on this processor")


@pytest.mark.parametrize(
    ("capabilities", "level", "is_all"),
    [
        (SAPPHIRE_RAPIDS, AMX, True),
        (ZEN_4, AVX512, True),
        (ICE_LAKE, AVX2, False),
        (HASWELL | {"avx_vnni": True}, AVX2, True),
        (HASWELL | {"fma3": False}, None, False),
        ({"architecture": "arm", "sve2": True}, None, False),
    ],
)
def test_a_processor_gets_the_highest_level_it_has_all_features_of(
    capabilities: dict[str, object], level: Level | None, is_all: bool
) -> None:
    found = best_level(capabilities)
    assert found is level
    assert (found is not None and found.is_all_of(capabilities)) == is_all


@pytest.mark.skipif(platform.machine() != "x86_64" or shutil.which("g++") is None, reason="asks g++ on x86-64")
@pytest.mark.parametrize(
    ("level", "processor"),
    [(AMX, "sapphirerapids"), (AVX512, "cooperlake"), (AVX2, "haswell"), (AVX2, "alderlake"), (AVX2, "znver3")],
)
def test_the_sources_use_no_feature_that_a_processor_of_the_level_has_and_the_level_lacks(
    level: Level, processor: str
) -> None:
    folder = Path(build.__file__).parent
    conditions = re.findall(
        r"^#\s*(?:el)?if.*", "\n".join(path.read_text() for path in folder.glob("*.h")), re.MULTILINE
    )
    used = set(re.findall(r"\b__\w+__\b", "\n".join(conditions)))
    assert "__AVX512BF16__" in used

    def defined(*target: str) -> set[str]:
        command = ["g++", *target, "-dM", "-E", "-x", "c++", "/dev/null"]
        shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        return used & set(re.findall(r"^#define (\w+)", shown, re.MULTILINE))

    assert defined(*level.target) == defined(f"-march={processor}")


def loaded(environ: Mapping[str, str] = os.environ) -> object:
    """Return what is loaded, in whose place these tests have paths and words."""
    return load_kernels(environ)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the sources, in which libraries may lie."""
    folder = tmp_path / "cpu"
    shutil.copytree(Path(build.__file__).parent, folder, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(build, "_FOLDER", folder)
    return folder


@pytest.fixture
def no_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have paths in place of operators: a process can load a library once, and from one path."""
    monkeypatch.setattr(build, "_load", lambda path, library: path)


def install(level: Level, folder: Path) -> Path:
    """Put a file with the name of a level's library beside the sources."""
    path = folder / build._file_name(level.library, build._flags(level.target, level.library))
    path.write_bytes(b"not a library")
    return path


def have_processor(monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, object]) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)


@pytest.mark.parametrize(("level", "capabilities"), [(AMX, SAPPHIRE_RAPIDS), (AVX512, ZEN_4), (AVX2, HASWELL)])
def test_an_installed_library_is_used_without_a_compiler_or_a_cache(
    folder: Path,
    no_loading: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    level: Level,
    capabilities: dict[str, object],
) -> None:
    have_processor(monkeypatch, capabilities)
    environ = NO_COMPILER | {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    with pytest.raises(KernelsUnavailable):
        load_kernels(environ)
    (tmp_path / "cache" / "caravan" / "kernels").rmdir()
    installed = [install(level, folder) for level in LEVELS]
    assert loaded(environ) == installed[LEVELS.index(level)]
    assert not (tmp_path / "cache" / "caravan" / "kernels").exists()


def test_a_processor_between_two_levels_builds_and_takes_the_lower_one_without_a_compiler(
    folder: Path,
    no_loading: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    installed = [install(level, folder) for level in LEVELS]
    have_processor(monkeypatch, ICE_LAKE)
    assert loaded(NO_COMPILER | {"XDG_CACHE_HOME": str(tmp_path)}) == installed[LEVELS.index(AVX2)]
    assert "cannot be built for this processor, those for avx2 are used" in caplog.text
    monkeypatch.setattr(build, "build_kernels", lambda **_: "built")
    assert loaded() == "built"


def test_an_installed_library_that_does_not_load_is_a_warning_and_kernels_are_built(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    install(AVX2, folder)
    have_processor(monkeypatch, HASWELL)
    monkeypatch.setattr(build, "build_kernels", lambda **_: "built")
    assert loaded() == "built"
    assert "The installed kernels cannot be loaded" in caplog.text


@pytest.mark.parametrize("changed", ["torch", "a source"])
def test_an_installed_library_for_another_torch_or_other_sources_is_not_used(
    folder: Path,
    no_loading: None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    changed: str,
) -> None:
    installed = install(AVX2, folder)
    have_processor(monkeypatch, HASWELL)
    monkeypatch.setattr(build, "build_kernels", lambda **_: "built")
    monkeypatch.setattr(torch, "__version__", torch.__version__.partition("+")[0] + "+cu999")
    assert loaded() == installed, "torch's builds for CPU and CUDA are one version"
    if changed == "torch":
        monkeypatch.setattr(torch, "__version__", "2.13.99+cpu")
    else:
        (folder / "threads.h").write_text("// changed")
    assert loaded() == "built"
    assert "The installed kernels were not built for" in caplog.text


@needs_a_level
@pytest.mark.parametrize("quantization", ["none", "int8", "int4"])
def test_the_library_of_a_level_and_a_build_for_this_processor_have_the_same_bits(quantization: Quantization) -> None:
    assert here is not None
    if not here.is_all_of(torch.cpu.get_capabilities()):
        pytest.skip("this processor builds its own")
    logits = [
        logits_of_every_position(tiny_llama(make_model=lambda config: CpuLlama(config, kernels, quantization)), PROMPT)  # noqa: B023  # runs at once
        for kernels in (build_kernels(), build_kernels(here.target, here.library))
    ]
    assert torch.equal(*logits)
