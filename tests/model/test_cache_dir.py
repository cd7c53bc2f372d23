"""Folders of built and fetched things where there is no home, or none that can be written."""

import os
import pwd
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from caravan.model.cache_dir import cache_folder, private_temporary_folder, writable_folder
from caravan.model.cpu import build

UNKNOWN_USER = 12345  # OpenShift and others start containers with such a user id
AS_UNKNOWN_USER = f"""
import logging, os, sys
from pathlib import Path
from caravan.model.cpu.build import _place  # while the sources can be read
logging.basicConfig(format="%(message)s")
os.setgroups([])
os.setgid({UNKNOWN_USER})
os.setuid({UNKNOWN_USER})
place = _place("caravan-1.so", os.environ)
place.write_bytes(b"built")
print(place)
print(_place("caravan-1.so", os.environ) == place)
"""


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Have another folder for temporary files."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path / f"caravan-{os.getuid()}"


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """Yield a folder that every user may enter and write."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        Path(name).chmod(0o777)
        yield Path(name)


def without_home(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(user_id: int) -> pwd.struct_passwd:
        raise KeyError(user_id)

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)


def test_a_user_without_a_home_has_no_cache_folder_unless_one_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    without_home(monkeypatch)
    with pytest.raises(OSError, match="this user has no home folder"):
        cache_folder({})
    with pytest.raises(OSError, match="this user has no home folder"):
        cache_folder({"XDG_CACHE_HOME": "relative"})
    assert cache_folder({"XDG_CACHE_HOME": "/var/cache"}) == Path("/var/cache/caravan")


def test_kernels_of_a_user_without_a_home_are_kept_among_the_temporary_files(
    temporary: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    without_home(monkeypatch)
    place = build._place("caravan-1.so", {})
    assert place == temporary / "kernels" / "caravan-1.so"
    assert stat.S_IMODE(temporary.stat().st_mode) == 0o700
    assert caplog.messages == [
        f"Cannot keep the kernels in ~/.cache: this user has no home folder. They are kept in {temporary}/kernels; "
        "set XDG_CACHE_HOME to a folder that is writable."
    ]


def test_kernels_beside_a_cache_that_cannot_be_written_are_kept_among_the_temporary_files(
    tmp_path: Path, temporary: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()  # no folder can be made below it, not even by root
    place = build._place("caravan-1.so", {"XDG_CACHE_HOME": str(tmp_path / "file")})
    assert place.parent == temporary / "kernels"
    assert "Not a directory. They are kept in" in caplog.text


def test_a_build_that_is_in_a_cache_that_cannot_be_written_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(folder: Path) -> Path:
        raise PermissionError

    monkeypatch.setattr(build, "writable_folder", refuse)
    kept = tmp_path / "caravan" / "kernels" / "caravan-1.so"
    kept.parent.mkdir(parents=True)
    kept.touch()
    assert build._place("caravan-1.so", {"XDG_CACHE_HOME": str(tmp_path)}) == kept
    assert not caplog.messages


@pytest.mark.parametrize("kind", ["link", "open to others", "file"])
def test_threat_25_a_temporary_folder_that_others_may_write_is_refused(
    tmp_path: Path, temporary: Path, kind: str
) -> None:
    if kind == "link":
        (tmp_path / "elsewhere").mkdir(mode=0o700)
        temporary.symlink_to(tmp_path / "elsewhere")
    elif kind == "file":
        temporary.touch()
    else:
        temporary.mkdir()
        temporary.chmod(0o777)
    with pytest.raises(OSError, match="not a folder that only this user can access|File exists"):
        private_temporary_folder()
    with pytest.raises(build.KernelsUnavailable):
        build.build_kernels(library="caravan_nowhere", environ={"XDG_CACHE_HOME": "/proc/nowhere"})


def test_a_temporary_folder_is_the_same_in_every_run(temporary: Path) -> None:
    assert private_temporary_folder() == private_temporary_folder() == temporary
    assert writable_folder(temporary / "kernels") == temporary / "kernels"
    assert not list((temporary / "kernels").iterdir())


@pytest.mark.slow
@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize("home", [None, "/", "/nowhere"])
def test_kernels_can_be_kept_by_a_user_id_without_an_entry_or_a_home(open_folder: Path, home: str | None) -> None:
    folder = open_folder
    environ = {name: value for name, value in os.environ.items() if name not in ("HOME", "XDG_CACHE_HOME")}
    environ |= {"TMPDIR": str(folder)} | ({} if home is None else {"HOME": home})
    command = [sys.executable, "-c", AS_UNKNOWN_USER]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    place = folder / f"caravan-{UNKNOWN_USER}" / "kernels" / "caravan-1.so"
    assert done.stdout.splitlines() == [str(place), "True"]
    assert done.stderr.count("Cannot keep the kernels in") == 2
    owner = place.parent.parent.stat()
    assert (owner.st_uid, stat.S_IMODE(owner.st_mode)) == (UNKNOWN_USER, 0o700)
