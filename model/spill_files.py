"""Spill files in the cache: where they are, which there are, and which of them nobody needs any more."""

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from caravan.model.cache_dir import cache_folder
from caravan.model.spill_header import SUFFIX, SpillHeader, SpillKey, read_spill_header


@dataclass(frozen=True, kw_only=True)
class SpillFileInfo:
    """A spill file in the cache."""

    path: Path
    num_bytes: int
    used_at: float  # seconds since the epoch
    header: SpillHeader | None  # None: it has no valid one


def spill_folder(environ: Mapping[str, str]) -> Path:
    """Return the folder of spill files; raises OSError for a user without a home folder."""
    return cache_folder(environ) / "kv"


def spill_file_name(key: SpillKey) -> str:
    """Return the name of the file for a key in the cache."""
    return hashlib.sha256(msgspec.json.encode(key, order="sorted")).hexdigest()[:32] + SUFFIX


def spill_files(folder: Path) -> list[SpillFileInfo]:
    """Return the spill files in a folder that belong to this user, the least recently used first."""
    files = []
    for path in folder.glob(f"*{SUFFIX}"):
        with contextlib.suppress(OSError):
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                status = os.fstat(descriptor)
                if status.st_uid == os.getuid():
                    header = read_spill_header(descriptor)
                    files.append(
                        SpillFileInfo(path=path, num_bytes=status.st_size, used_at=status.st_mtime, header=header)
                    )
            finally:
                os.close(descriptor)
    return sorted(files, key=lambda file: file.used_at)


def remove_unneeded(folder: Path, model_path: str, kept: Path) -> None:
    """Remove the files that no engine uses and none will need: of the same model with other options, or of none."""
    for file in spill_files(folder):
        is_other = file.header is None or file.header.model_path == model_path
        if file.path != kept and (is_other or (file.header and not Path(file.header.model_path).exists())):
            _remove_unused(file.path)


def _remove_unused(path: Path) -> None:
    """Remove a file unless an engine has locked it."""
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
        finally:
            os.close(descriptor)
