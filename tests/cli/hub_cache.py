"""A Hugging Face cache, written as its client writes it."""

import hashlib
from pathlib import Path

COMMIT = "0123456789012345678901234567890123456789"


def write_cached(cache: Path, repo: str, files: dict[str, bytes], *, commit: str = COMMIT) -> Path:
    """Write files of a revision of `repo` into the cache; return the revision's folder."""
    folder = cache / f"models--{repo.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True, exist_ok=True)
    (folder / "refs" / "main").write_text(commit)
    (folder / "blobs").mkdir(exist_ok=True)
    snapshot = folder / "snapshots" / commit
    for name, content in files.items():
        blob = folder / "blobs" / hashlib.sha256(content).hexdigest()
        blob.write_bytes(content)
        (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / name).symlink_to(blob)
    return snapshot
