"""Checks of an open file in the cache: that it is this user's, and still the one at its path."""

import os
import stat
from pathlib import Path


def ownership_problem(status: os.stat_result) -> str:
    """Return why a file is not a regular file of this user, as the end of a sentence; an empty text if it is one."""
    if not stat.S_ISREG(status.st_mode):
        return "it is not a regular file"
    if status.st_uid != os.getuid():
        return f"it belongs to the user {status.st_uid}"
    return ""


def is_at(descriptor: int, path: Path) -> bool:
    """Return whether an open file is still the one at a path; raises OSError other than FileNotFoundError."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except FileNotFoundError:
        return False
