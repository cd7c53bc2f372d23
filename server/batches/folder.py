"""BatchFolder: the folder of files and batches, which one process uses at a time."""

import fcntl
import os
import re
from pathlib import Path

_OTHERS = 0o077  # permissions of the group and of others
_PART = ".part"  # the suffix of a file that is being written
_OURS = re.compile(r"file-[0-9a-f]{32}(?:\.part)?")  # names that this class gives


class FolderError(ValueError):
    """The folder cannot be used; the text is one line that names it."""


class BatchFolder:
    """A folder with a lock, a journal and the files' contents; only its owner can read it.

    Files are written under another name first, so a file under its own name is complete.
    """

    def __init__(self, path: Path) -> None:
        """Open a folder, and create it if there is none; raises FolderError."""
        self.path = path
        self._lock = -1
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            status = path.stat()
            if status.st_uid != os.geteuid():  # who owns it can read it, also under a server of root's
                raise FolderError(f"Another user owns the batch folder {path}. Run as that user, or change its owner.")
            if status.st_mode & _OTHERS:
                raise FolderError(f"Other users can read the batch folder {path}. Set its mode to 0700.")
            self._files = path / "files"
            self._files.mkdir(mode=0o700, exist_ok=True)
            self._lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            self.journal = path / "journal.sqlite"
            os.close(os.open(self.journal, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))  # SQLite keeps this mode
            sync_folder(path)
        except OSError as error:
            self.close()
            raise FolderError(f"Cannot use the batch folder {path}: {error.strerror}.") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self.close()
            raise FolderError(f"Another process uses the batch folder {path}. Choose another folder.") from None

    def path_of(self, file_id: str) -> Path:
        """Return where the contents of a file are; `file_id` must be one of ours."""
        return self._files / file_id

    def part_of(self, file_id: str) -> Path:
        """Return where a file is while it is being written."""
        return self._files / (file_id + _PART)

    def create_part(self, file_id: str) -> int:
        """Return the descriptor of a new, empty file, which `complete` gives its own name."""
        return os.open(self.part_of(file_id), os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)

    def complete(self, file_id: str) -> None:
        """Give a file that is on disk its own name, in a way that a power cut does not undo."""
        self.part_of(file_id).replace(self.path_of(file_id))
        sync_folder(self._files)

    def remove(self, file_id: str) -> None:
        """Remove the contents of a file, complete or not."""
        self.path_of(file_id).unlink(missing_ok=True)
        self.part_of(file_id).unlink(missing_ok=True)

    def remove_all_but(self, file_ids: set[str]) -> None:
        """Remove what a process that ended early left behind; files with names of another kind are not ours."""
        for path in self._files.iterdir():
            if path.name not in file_ids and _OURS.fullmatch(path.name):
                path.unlink()

    def close(self) -> None:
        """Give the lock back."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def sync_folder(path: Path) -> None:
    """Write the names in a folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
