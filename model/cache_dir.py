"""Folders for downloaded and built files that are kept between runs."""

import errno
import os
import stat
import tempfile
from collections.abc import Mapping
from pathlib import Path


def cache_folder(environ: Mapping[str, str]) -> Path:
    """Return the folder of this program in the user's cache; raises OSError for a user without a home folder.

    A relative XDG_CACHE_HOME is ignored. Source: XDG Base Directory Specification 0.8.
    """
    cache = Path(environ.get("XDG_CACHE_HOME", ""))
    if cache.is_absolute():
        return cache / "caravan"
    try:
        return Path.home() / ".cache" / "caravan"
    except RuntimeError:
        raise FileNotFoundError(errno.ENOENT, "this user has no home folder", "~/.cache") from None


def writable_folder(folder: Path) -> Path:
    """Create a folder if needed and return it; raises OSError if files cannot be written into it."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        return folder


def private_temporary_folder() -> Path:
    """Return a temporary folder that only this user may enter; raises OSError.

    It has the same name in every run. Another user may have made it first, so its owner is checked.
    """
    folder = Path(tempfile.gettempdir()) / f"caravan-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise PermissionError(errno.EPERM, "it is not a folder that only this user can access", str(folder))
    return folder
