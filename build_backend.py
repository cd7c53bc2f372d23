"""The build backend: setuptools, and on Linux on x86-64 the libraries of the kernels in the wheel."""

import base64
import csv
import hashlib
import io
import os
import platform
import shlex
import shutil
import sys
import tomllib
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from setuptools import build_meta
from setuptools.build_meta import (
    build_editable,
    build_sdist,
    get_requires_for_build_editable,
    get_requires_for_build_sdist,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]

_ROOT = Path(__file__).parent
_TAG = "py3-none-linux_x86_64"  # torch's library is called, Python's is not
_FOLDER = "caravan/model/cpu"

Settings = Mapping[str, Any] | None


def get_requires_for_build_wheel(config_settings: Settings = None) -> list[str]:
    """Return what a wheel is built with: what setuptools asks for, and for kernels torch and ninja."""
    wanted = list(build_meta.get_requires_for_build_wheel(config_settings))
    if _has_kernels():
        project = tomllib.loads((_ROOT / "pyproject.toml").read_text())["project"]
        wanted += [line for line in project["dependencies"] if line.startswith(("torch>", "ninja>"))]
    return wanted


def build_wheel(wheel_directory: str, config_settings: Settings = None, metadata_directory: str | None = None) -> str:
    """Return the name of the wheel built in `wheel_directory`; without a compiler it is one for every platform."""
    name: str = build_meta.build_wheel(wheel_directory, config_settings, metadata_directory)
    if not _has_kernels():
        warnings.warn("No kernels in this wheel: it is not built on Linux on x86-64 with a C++ compiler.", stacklevel=2)
        return name
    pure = Path(wheel_directory, name)
    with_kernels = pure.with_name(name.replace("py3-none-any", _TAG))
    _add(pure, with_kernels, _libraries())
    pure.unlink()
    return with_kernels.name


def _has_kernels() -> bool:
    """Return whether kernels can be compiled for the levels of processors that a wheel has libraries for."""
    compiler = shlex.split(os.environ.get("CXX", "c++"))[0]
    is_x86 = sys.platform == "linux" and platform.machine() == "x86_64"
    return is_x86 and shutil.which(compiler) is not None


def _libraries() -> list[Path]:
    """Return the libraries for all levels; those of an earlier build come out of the user's cache."""
    from caravan.model.cpu.build import built_library
    from caravan.model.cpu.levels import LEVELS

    return [built_library(level.target, level.library, os.environ) for level in LEVELS]


def _add(pure: Path, with_libraries: Path, libraries: list[Path]) -> None:
    """Write a wheel that has the libraries beside their sources and says that it is for one platform."""
    with (
        zipfile.ZipFile(pure) as old,
        zipfile.ZipFile(with_libraries, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as new,
    ):
        record = next(info for info in old.infolist() if info.filename.endswith(".dist-info/RECORD"))
        metadata = record.filename.removesuffix("RECORD") + "WHEEL"
        changed = {f"{_FOLDER}/{path.name}": path.read_bytes() for path in libraries}
        text = old.read(metadata).decode()
        text = text.replace("Root-Is-Purelib: true", "Root-Is-Purelib: false")
        changed[metadata] = text.replace("Tag: py3-none-any", f"Tag: {_TAG}").encode()
        for info in old.infolist():
            if info is not record and info.filename not in changed:
                new.writestr(info, old.read(info))
        for name, content in changed.items():
            new.writestr(name, content)
        rows = [row for row in csv.reader(io.StringIO(old.read(record).decode())) if row[0] not in changed]
        rows += [_record_row(name, content) for name, content in changed.items()]
        lines = io.StringIO()
        csv.writer(lines, lineterminator="\n").writerows(rows)
        new.writestr(record.filename, lines.getvalue())


def _record_row(name: str, content: bytes) -> list[str]:
    """Return a file's line in RECORD. Source: PyPA's specification of recording installed projects."""
    digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
    return [name, f"sha256={digest}", str(len(content))]
