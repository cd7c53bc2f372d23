"""The wheel: it owns one name, and runs beside packages and files that are called like its parts."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from caravan import __version__

ROOT = Path(__file__).parent.parent
PARTS = ("server", "scheduler", "model")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of the sources: setuptools leaves files beside them."""
    folder = tmp_path_factory.mktemp("wheel")
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
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path) -> Path:
    """A folder with what the wheel installs."""
    folder = wheel.parent / "installed"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def test_the_wheel_owns_one_name(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {name.partition("/")[0] for name in names} == {"caravan", f"caravan_llm-{__version__}.dist-info"}


def test_the_wheel_has_what_runs_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name.startswith("caravan/")]
    for name in (
        "cli/main.py",
        "download/resolve.py",
        "server/openai/chat.py",
        "scheduler/process.py",
        "model/llama.py",
        "model/cpu/build.py",
    ):
        assert f"caravan/{name}" in names
    assert any(name.endswith(".cpp") for name in names)
    assert "caravan/server/web/index.html" in names
    assert "caravan/server/web/llama2-from-scratch.md" in names
    folders = [ROOT / name for name in (*PARTS, "caravan/cli", "caravan/download")]
    sources = [*(ROOT / "caravan").glob("*.py"), *(path for folder in folders for path in folder.rglob("*.py"))]
    assert len([name for name in names if name.endswith(".py")]) == len(sources)
    assert not [name for name in names if "benchmark-" in name or "reliability-" in name or name.endswith(".png")]
    guide = (ROOT / "docs/llama2-from-scratch.md").read_text("utf-8")
    for name in names:
        assert not name.endswith(".svg") or f"figures/{Path(name).name}" in guide, name


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
    assert "Format       GGUF" in _run(
        [sys.executable, "-m", "caravan", "inspect", str(tiny_model_path)], installed, tmp_path
    )
