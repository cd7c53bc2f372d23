"""Load the C++ kernels for this processor: a library that is installed, or one that is built once."""

import hashlib
import json
import logging
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import torch

from caravan.model.cache_dir import cache_folder, private_temporary_folder, writable_folder
from caravan.model.cpu.kernels import Kernels
from caravan.model.cpu.levels import Level, best_level

_FOLDER = Path(__file__).parent
_FLAGS = ("-O3", "-std=c++20", "-fopenmp", "-Wno-psabi")  # psabi: a note on passing vectors, of no use here
NATIVE = ("-march=native",)

logger = logging.getLogger(__name__)


class KernelsUnavailable(Exception):
    """The kernels cannot be built or loaded here; the text is one line that says why."""


def load_kernels(environ: Mapping[str, str] = os.environ) -> Kernels:
    """Return the operators of the kernels for this processor.

    A wheel may contain libraries for several levels of processors. One is used if its level has all features of this
    processor that the kernels can use; otherwise the kernels are built. If they cannot be built, the library for a
    lower level is used. Raises KernelsUnavailable.
    """
    capabilities = torch.cpu.get_capabilities()
    level = best_level(capabilities)
    shipped = None if level is None else _shipped_library(level)
    if level is not None and shipped is not None and level.is_all_of(capabilities):
        try:
            return _load(shipped, level.library)
        except KernelsUnavailable as error:
            logger.warning("The installed kernels cannot be loaded: %s", error)
            shipped = None
    try:
        return build_kernels(environ=environ)
    except KernelsUnavailable as error:
        if level is None or shipped is None:
            raise
        logger.warning("The kernels cannot be built for this processor, those for %s are used: %s", level.name, error)
        return _load(shipped, level.library)


def build_kernels(
    target: Sequence[str] = NATIVE, library: str = "caravan", environ: Mapping[str, str] = os.environ
) -> Kernels:
    """Return the operators of the kernels, `torch.ops.<library>`, built for `target` if they are not in the cache.

    Raises KernelsUnavailable.
    """
    return _load(built_library(target, library, environ), library)


def built_library(target: Sequence[str], library: str, environ: Mapping[str, str]) -> Path:
    """Return the file of the kernels for `target`, built if it is not in the cache.

    Its file name has a hash of the sources, the flags, torch's version and the processor's features. It is moved to its
    place atomically, so several processes can build at once. If the cache is not writable, as for a user without a home
    folder, the file is kept in a temporary folder. Raises KernelsUnavailable.
    """
    flags = _flags(target, library)
    try:
        built = _place(_file_name(library, flags), environ)
        if not built.is_file():
            _build(built, flags, environ)
    except OSError as error:
        raise KernelsUnavailable(" ".join(str(error).split())[:300]) from error
    return built


def processor_features() -> dict[str, bool | str]:
    """Return the architecture and the instruction sets of this processor, by torch's names."""
    capabilities = torch.cpu.get_capabilities()
    return {name: value for name, value in capabilities.items() if isinstance(value, bool | str)}


def _shipped_library(level: Level) -> Path | None:
    """Return the installed library for a level, if it was built from these sources and for this torch."""
    path = _FOLDER / _file_name(level.library, _flags(level.target, level.library))
    if path.is_file():
        return path
    if any(_FOLDER.glob(f"{level.library}-*.so")):
        logger.warning("The installed kernels were not built for PyTorch %s or from these sources.", torch.__version__)
    return None


def _load(path: Path, library: str) -> Kernels:
    """Return the operators in a library; raises KernelsUnavailable."""
    try:
        torch.ops.load_library(path)  # type: ignore[no-untyped-call]  # torch gives it no types
    except OSError as error:
        raise KernelsUnavailable(" ".join(str(error).split())[:300]) from error
    return cast(Kernels, getattr(torch.ops, library))


def _flags(target: Sequence[str], library: str) -> list[str]:
    return [*_FLAGS, *target, f"-DCARAVAN_LIBRARY={library}"]


def _place(name: str, environ: Mapping[str, str]) -> Path:
    """Return the path of a library, in the cache or, if that is not writable, among temporary files; raises OSError."""
    try:
        folder = cache_folder(environ) / "kernels"
        if not (folder / name).is_file():
            writable_folder(folder)
    except OSError as error:
        folder = private_temporary_folder() / "kernels"
        folder.mkdir(exist_ok=True)
        logger.warning(
            "Cannot keep the kernels in %s: %s. They are kept in %s; set XDG_CACHE_HOME to a folder that is writable.",
            error.filename,
            error.strerror,
            folder,
        )
    return folder / name


def _file_name(library: str, flags: list[str]) -> str:
    """Return a name with a hash of the content; torch's builds for CPU and CUDA have the same C++ interface."""
    features = processor_features() if set(NATIVE) <= set(flags) else {}
    version = torch.__version__.partition("+")[0]
    digest = hashlib.sha256(json.dumps([flags, version, features], sort_keys=True).encode())
    for path in sorted((*_FOLDER.glob("*.cpp"), *_FOLDER.glob("*.h"))):
        digest.update(path.read_bytes())
    return f"{library}-{digest.hexdigest()[:16]}.so"


def _build(built: Path, flags: list[str], environ: Mapping[str, str]) -> None:
    print("Building the kernels, once; it takes less than a minute.", file=sys.stderr, flush=True)
    # The ninja of this Python's environment is found whether or not that is activated.
    path = os.pathsep.join([str(Path(sys.executable).parent), environ.get("PATH", os.defpath)])
    command = [sys.executable, "-P", str(_FOLDER / "compile.py"), str(built), *flags]
    done = subprocess.run(command, env={**environ, "PATH": path}, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        telling = [line for line in lines if "error:" in line] or lines[-1:] or [f"exit status {done.returncode}"]
        raise KernelsUnavailable(telling[0][:300])
