"""The wheel: it owns one name, and runs beside packages and files that are called like its parts."""

import base64
import compileall
import csv
import fcntl
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import time
import tomllib
import zipfile
from pathlib import Path

import pytest
import torch
from setuptools import build_meta

import build_backend
from caravan import __version__
from caravan.model.cpu.levels import LEVELS, best_level
from tests.support.running_server import running_server

ROOT = Path(__file__).parent.parent
PARTS = ("server", "scheduler", "model")

# Where the kernels are in no cache yet, the first of them waits for three builds.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built once for all processes of a run. Its kernels come out of the user's cache if they are there."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "wheel"
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not list(folder.glob("*.whl")):
            _build(folder)
    (built,) = folder.glob("*.whl")
    return built


def _build(folder: Path) -> None:
    """Build from a copy of the sources: setuptools leaves files beside them."""
    listed = subprocess.run(
        ["git", "ls-files", "-coz", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    for name in filter(None, listed.split("\0")):
        if name.partition("/")[0] not in ("tests", "benchmarks", "findings"):
            copy = folder / "sources" / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            if (ROOT / name).is_symlink():
                copy.symlink_to((ROOT / name).readlink())
            else:
                copy.write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(folder)]
    subprocess.run([*command, str(folder / "sources")], check=True)


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the wheel installs."""
    folder = tmp_path_factory.mktemp("installed")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    compileall.compile_dir(folder, quiet=1)  # as pip does
    return folder


def test_the_wheel_owns_one_name(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    own, data = "caravan", f"caravan_llm-{__version__}.data"
    assert {name.partition("/")[0] for name in names} == {own, data, f"caravan_llm-{__version__}.dist-info"}
    assert [name for name in names if name.startswith(data)] == [f"{data}/data/share/man/man1/caravan.1"]


def test_the_wheel_has_what_runs_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name.startswith("caravan/")]
    for name in (
        "offline/llm.py",
        "cli/main.py",
        "cli/caravan.service",
        "download/resolve.py",
        "server/openai/chat.py",
        "scheduler/process.py",
        "model/llama.py",
        "model/cpu/build.py",
    ):
        assert f"caravan/{name}" in names
    assert any(name.endswith(".cpp") for name in names)
    assert "caravan/server/web/index.html" in names
    assert "caravan/server/web/chat/view.js" in names
    assert "caravan/server/web/vendor/marked/marked.esm.js" in names
    assert "caravan/server/web/vendor/marked/LICENSE" in names
    assert "caravan/server/web/llama2-from-scratch.md" in names
    folders = [ROOT / name for name in (*PARTS, "caravan/cli", "caravan/download", "caravan/offline")]
    sources = [*(ROOT / "caravan").glob("*.py"), *(path for folder in folders for path in folder.rglob("*.py"))]
    assert len([name for name in names if name.endswith(".py")]) == len(sources)
    assert not [name for name in names if "benchmark-" in name or "reliability-" in name or name.endswith(".png")]
    guide = (ROOT / "docs/llama2-from-scratch.md").read_text("utf-8")
    for name in names:
        assert not name.endswith(".svg") or f"figures/{Path(name).name}" in guide, name


def test_the_wheel_has_the_kernels_of_every_level_and_is_for_their_platform(wheel: Path) -> None:
    if platform.machine() != "x86_64" or sys.platform != "linux" or shutil.which("c++") is None:
        assert wheel.name.endswith("-py3-none-any.whl")
        return
    assert wheel.name.endswith("-py3-none-linux_x86_64.whl")
    with zipfile.ZipFile(wheel) as archive:
        libraries = [name for name in archive.namelist() if name.endswith(".so")]
        library_bytes = sum(archive.getinfo(name).compress_size for name in libraries)
        (metadata,) = (name for name in archive.namelist() if name.endswith(".dist-info/WHEEL"))
        assert {"Root-Is-Purelib: false", "Tag: py3-none-linux_x86_64"} <= set(
            archive.read(metadata).decode().split("\n")
        )
    names = {re.sub("-[0-9a-f]{16}[.]so$", "", name) for name in libraries}
    assert len(libraries) == len(LEVELS)
    assert names == {f"caravan/model/cpu/{level.library}" for level in LEVELS}
    assert library_bytes < 2_200_000  # three builds of sixteen formats of weights, and of the exchange of ranks
    print(f"{library_bytes:,} bytes of kernels, {wheel.stat().st_size - library_bytes:,} bytes of all else")
    assert wheel.stat().st_size - library_bytes < 1_700_000  # 90,000 are the libraries of the page


def test_the_record_of_the_wheel_holds_for_all_its_files(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (record,) = (name for name in names if name.endswith(".dist-info/RECORD"))
        rows = list(csv.reader(archive.read(record).decode().splitlines()))
        assert sorted(row[0] for row in rows) == sorted(names)
        for name, digest, size in (row for row in rows if row[0] != record):
            content = archive.read(name)
            found = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode().rstrip("=")
            assert (digest, int(size)) == (f"sha256={found}", len(content)), name


def test_without_a_compiler_the_wheel_is_for_every_platform_and_needs_no_torch_to_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def built(directory: str, *_: object) -> str:
        (Path(directory) / "caravan-1-py3-none-any.whl").touch()
        return "caravan-1-py3-none-any.whl"

    monkeypatch.setattr(build_meta, "build_wheel", built)
    monkeypatch.setattr(build_meta, "get_requires_for_build_wheel", lambda _: ["setuptools"])
    monkeypatch.setenv("CXX", "no-such-compiler -O2")
    assert build_backend.get_requires_for_build_wheel() == ["setuptools"]
    with pytest.warns(UserWarning, match="No kernels in this wheel"):
        assert build_backend.build_wheel(str(tmp_path)) == "caravan-1-py3-none-any.whl"


@pytest.mark.skipif(platform.machine() != "x86_64" or shutil.which("c++") is None, reason="kernels are for x86-64")
def test_a_wheel_is_built_with_the_torch_that_the_project_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_meta, "get_requires_for_build_wheel", lambda _: [])
    needs = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    found = build_backend.get_requires_for_build_wheel()
    assert [re.match("[a-z]+", line)[0] for line in found] == ["torch", "ninja"]  # type: ignore[index]  # all match
    assert set(found) <= set(needs)


@pytest.mark.real_model
@pytest.mark.timing
@pytest.mark.skipif(best_level(torch.cpu.get_capabilities()) is None, reason="builds kernels on the first start")
def test_without_a_compiler_or_a_cache_the_first_start_takes_less_than_five_seconds(
    installed: Path, tmp_path: Path, real_model_path: Path
) -> None:
    (tmp_path / "bin").mkdir()
    environ = {"PATH": str(tmp_path / "bin"), "XDG_CACHE_HOME": str(tmp_path / "cache"), "PYTHONPATH": str(installed)}
    for _ in range(3):  # the best of three: something else may take the processor for a moment
        started = time.monotonic()
        with running_server(real_model_path, environ=environ, cwd=tmp_path) as server:
            seconds = time.monotonic() - started
            assert "native" in server.start_text, "plain PyTorch has no such weights"
            maps = Path(f"/proc/{server.engine_pid()}/maps").read_text()
            assert re.search(rf"{installed}/caravan/model/cpu/caravan_\w+-\w+[.]so$", maps, re.MULTILINE)
            (model,) = server.http.get("/v1/models").json()["data"]
            body = {"model": model["id"], "prompt": "The capital of France is", "max_tokens": 8, "temperature": 0}
            answer = server.http.post("/v1/completions", json=body).json()
            assert "Paris" in answer["choices"][0]["text"]
        assert not list(tmp_path.glob("cache/caravan/kernels/*"))
        if seconds < 5:
            return
    pytest.fail(f"the first start took {seconds:.1f} s")


def _run(arguments: list[str], installed: Path, cwd: Path, *more_paths: Path) -> str:
    environ = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (*more_paths, installed)))}
    done = subprocess.run(arguments, cwd=cwd, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_runs_beside_packages_that_are_called_like_its_parts(installed: Path, tmp_path: Path) -> None:
    for part in PARTS:
        (tmp_path / "others" / part).mkdir(parents=True)
        (tmp_path / "others" / part / "__init__.py").write_text(f"NAME = 'another {part}'")
    program = (
        "import server, scheduler, model, caravan.cli.main, caravan.scheduler.engine, caravan.model.llama\n"
        "print(server.NAME, scheduler.NAME, model.NAME, caravan.__file__)"
    )
    said = _run([sys.executable, "-c", program], installed, tmp_path, tmp_path / "others")
    assert said == f"another server another scheduler another model {installed / 'caravan' / '__init__.py'}\n"


def test_files_in_the_working_folder_that_are_called_like_its_parts_change_nothing(
    installed: Path, tmp_path: Path, tiny_model_path: Path
) -> None:
    for part in PARTS:
        (tmp_path / f"{part}.py").write_text("raise SystemExit('the wrong file')")
    assert _run([sys.executable, "-m", "caravan", "--version"], installed, tmp_path) == f"caravan {__version__}\n"
    shown = _run([sys.executable, "-m", "caravan", "inspect", str(tiny_model_path)], installed, tmp_path)
    assert re.search(r"^Format +GGUF$", shown, re.MULTILINE)
