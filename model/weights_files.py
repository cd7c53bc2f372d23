"""Files of packed weights in the cache: which there are, and how they are written, limited and removed."""

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from caravan.model.cache_dir import cache_folder
from caravan.model.open_file import is_at
from caravan.model.weights_header import (
    SUFFIX,
    UnusableWeights,
    WeightsHeader,
    file_identity,
    open_weights,
    read_header,
)

MIN_FREE_BYTES = 2**30  # that stay free on the file system, and
MIN_FREE_SHARE = 0.05  # of its size, if that is more
_PART_SUFFIX = ".part"  # of a file that is being written


class NoRoom(Exception):
    """A file of packed weights would be too large; the text is one sentence."""


@dataclass(frozen=True, kw_only=True)
class WeightsFile:
    """A file of packed weights."""

    path: Path
    num_bytes: int
    used_at: float  # seconds since the epoch
    header: WeightsHeader | None  # None: it cannot be used

    @property
    def is_obsolete(self) -> bool:
        """Whether the file can never be used again, since its model has changed or is gone."""
        if self.header is None:
            return True
        known, path = set(self.header.key.files), Path(self.header.model_path)
        try:
            if path.is_dir():
                return not known <= {file_identity(file) for file in path.iterdir() if file.is_file()}
            return file_identity(path) not in known
        except (FileNotFoundError, NotADirectoryError):
            return True
        except OSError:  # it cannot be read at the moment
            return False


def weights_folder(environ: Mapping[str, str]) -> Path:
    """Return the folder of packed weights; raises OSError for a user without a home folder."""
    return cache_folder(environ) / "weights"


def weights_files(folder: Path) -> list[WeightsFile]:
    """Return the files in the folder that belong to this user, the least recently used first."""
    files = []
    for path in folder.glob(f"*{SUFFIX}"):
        with contextlib.suppress(OSError):
            status = path.lstat()
            if status.st_uid != os.getuid() or path.is_dir():
                continue
            files.append(
                WeightsFile(path=path, num_bytes=status.st_size, used_at=status.st_mtime, header=_header(path))
            )
    return sorted(files, key=lambda file: file.used_at)


def make_room(folder: Path, num_bytes: int, limit_bytes: int) -> None:
    """Remove files so that another one of num_bytes keeps the folder within limit_bytes.

    Obsolete files and rests of interrupted writes go first, then the least recently used. A file that is mapped stays
    usable for the engines that have mapped it. Raises NoRoom before a file in use is removed.
    """
    if num_bytes > limit_bytes:
        raise NoRoom(f"They take {num_bytes:,} bytes; --weights-cache-size is {limit_bytes:,}.")
    for part in folder.glob(f"*{_PART_SUFFIX}"):
        _remove_abandoned(part)
    kept = []
    for file in weights_files(folder):
        if file.is_obsolete:
            file.path.unlink(missing_ok=True)
        else:
            kept.append(file)
    total = num_bytes + sum(file.num_bytes for file in kept)
    freed = 0
    leaving = []
    for file in kept:
        if total - freed <= limit_bytes:
            break
        leaving.append(file)
        freed += file.num_bytes
    disk = shutil.disk_usage(folder)
    reserve = max(MIN_FREE_BYTES, int(disk.total * MIN_FREE_SHARE))
    if num_bytes and disk.free + freed - num_bytes < reserve:
        raise NoRoom(
            f"They take {num_bytes:,} bytes; {disk.free:,} are free in {folder}, of which {reserve:,} must stay free."
        )
    for file in leaving:
        file.path.unlink(missing_ok=True)


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[BinaryIO | None]:
    """Open a file that takes the place of `path` when the block ends, None if another process is writing it.

    It has mode 0600 and is on the disk before it is moved. If the block raises, it is removed. Raises OSError.
    """
    part = path.with_suffix(_PART_SUFFIX)
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    with open(os.open(part, flags, 0o600), "r+b") as file:  # noqa: PTH123
        if not _lock(part, file):
            yield None
            return
        os.fchmod(file.fileno(), 0o600)
        file.truncate(0)
        try:
            yield file
            file.flush()
            os.fsync(file.fileno())
            part.replace(path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise


def _lock(part: Path, file: BinaryIO) -> bool:
    """Lock a part until it is closed; False if another process has it, or has moved or removed it meanwhile."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return is_at(file.fileno(), part)


def _remove_abandoned(part: Path) -> None:
    """Remove what a process left that ended while it wrote."""
    with (
        contextlib.suppress(OSError),
        open(os.open(part, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC), "r+b") as file,  # noqa: PTH123
    ):
        if _lock(part, file):
            part.unlink()


def _header(path: Path) -> WeightsHeader | None:
    try:
        with open_weights(path) as file:
            return read_header(file)[0]
    except (OSError, UnusableWeights):
        return None
