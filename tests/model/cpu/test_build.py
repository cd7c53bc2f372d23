"""Which library of kernels is loaded, and how one is built, without a compiler."""

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils import cpp_extension

from caravan.model.cpu import build, compile  # noqa: A004  the module's name
from caravan.model.cpu.build import KernelsUnavailable, load_kernels
from caravan.model.cpu.levels import LEVELS, Level

SHIPPED = Path("/shipped.so")


class Libraries:
    """The libraries of a test: what was loaded, and which of them cannot be."""

    def __init__(self) -> None:
        self.loaded: list[tuple[Path, str]] = []
        self.broken: set[str] = set()

    def load(self, path: Path, library: str) -> str:
        if library in self.broken:
            raise KernelsUnavailable(f"{library} is broken")
        self.loaded.append((path, library))
        return library

    def build(self, environ: Mapping[str, str]) -> str:
        if "built" in self.broken:
            raise KernelsUnavailable("there is no compiler")
        return "built"


@pytest.fixture
def libraries(monkeypatch: pytest.MonkeyPatch) -> Libraries:
    made = Libraries()
    monkeypatch.setattr(build, "best_level", lambda _: LEVELS[0])
    monkeypatch.setattr(build, "_shipped_library", lambda _: SHIPPED)
    monkeypatch.setattr(build, "_load", made.load)
    monkeypatch.setattr(build, "build_kernels", made.build)
    return made


@pytest.mark.parametrize("uses_all", [True, False])
def test_an_installed_library_is_used_where_it_uses_all_of_the_processor(
    libraries: Libraries, uses_all: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Level, "is_all_of", lambda *_: uses_all)
    assert str(load_kernels()) == (LEVELS[0].library if uses_all else "built")


def test_kernels_are_built_where_the_installed_ones_cannot_be_loaded(
    libraries: Libraries, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Level, "is_all_of", lambda *_: True)
    libraries.broken.add(LEVELS[0].library)
    assert str(load_kernels()) == "built"
    assert "The installed kernels cannot be loaded" in caplog.text
    libraries.broken.add("built")
    with pytest.raises(KernelsUnavailable, match="no compiler"):
        load_kernels()


def test_an_installed_library_for_less_is_used_where_none_can_be_built(
    libraries: Libraries, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Level, "is_all_of", lambda *_: False)
    libraries.broken.add("built")
    assert str(load_kernels()) == LEVELS[0].library
    assert "cannot be built for this processor" in caplog.text


def test_an_installed_library_of_other_sources_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(build, "_FOLDER", tmp_path)
    level = LEVELS[0]
    assert build._shipped_library(level) is None
    assert not caplog.messages
    (tmp_path / f"{level.library}-0123.so").touch()
    assert build._shipped_library(level) is None
    assert caplog.messages == [
        f"The installed kernels were not built for PyTorch {torch.__version__} or from these sources."
    ]
    fitting = tmp_path / build._file_name(level.library, build._flags(level.target, level.library))
    fitting.touch()
    assert build._shipped_library(level) == fitting


def test_a_file_that_is_no_library_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "kernels.so").write_text("no library")
    with pytest.raises(KernelsUnavailable, match=r"kernels\.so"):
        build._load(tmp_path / "kernels.so", "caravan_nowhere")


@pytest.mark.parametrize(("status", "output"), [(0, ""), (1, "note\nx.cpp:3: error: no such thing\nmore"), (2, "")])
def test_a_failed_build_names_the_compilers_error(
    status: int, output: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    commands: list[Sequence[str]] = []

    def run(command: Sequence[str], **options: Any) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        assert options["env"]["PATH"].startswith(str(Path(sys.executable).parent))
        return subprocess.CompletedProcess(command, status, output, "")

    monkeypatch.setattr(subprocess, "run", run)
    environ = {"XDG_CACHE_HOME": str(tmp_path)}
    if status:
        with pytest.raises(KernelsUnavailable, match="error: no such thing" if output else "exit status 2"):
            build.built_library(build.NATIVE, "caravan_nowhere", environ)
    else:
        assert build.built_library(build.NATIVE, "caravan_nowhere", environ).parent == tmp_path / "caravan/kernels"
    assert "-march=native" in commands[0]
    assert "Building the kernels" in capsys.readouterr().err


def test_the_compiled_library_takes_its_place_in_one_move(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def load(**options: Any) -> None:
        seen.update(options)
        (Path(options["build_directory"]) / f"{options['name']}.so").write_text("library")

    monkeypatch.setattr(cpp_extension, "load", load)
    monkeypatch.setattr(sys, "argv", ["compile.py", str(tmp_path / "caravan-1.so"), "-O3", "-march=native"])
    compile.main()
    assert [path.name for path in tmp_path.iterdir()] == ["caravan-1.so"]
    assert (tmp_path / "caravan-1.so").read_text() == "library"
    assert seen["name"] == "caravan_1"
    assert seen["extra_cflags"] == ["-O3", "-march=native"]
    assert all(name.endswith(".cpp") for name in seen["sources"])
