"""Build the C++ kernels for this processor, once, and load them."""

import hashlib
import json
import logging
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from caravan.model.cache_dir import cache_folder, private_temporary_folder, writable_folder

_FOLDER = Path(__file__).parent
_FLAGS = ("-O3", "-std=c++20", "-fopenmp", "-Wno-psabi")  # psabi: a note on passing vectors, of no use here

logger = logging.getLogger(__name__)


class KernelsUnavailable(Exception):
    """The kernels cannot be built or loaded here; the text is one line that says why."""


def load_kernels(
    target: Sequence[str] = ("-march=native",), library: str = "caravan", environ: Mapping[str, str] = os.environ
) -> Any:
    """Return the operators of the kernels, `torch.ops.<library>`, built for `target` if they are not in the cache.

    A build is kept under a name made of the sources, the flags, torch and the processor's features, and takes its
    place there in one move, so that several processes may build at once. Where the cache cannot be written, as with a
    user id that has no home folder, it is kept among the temporary files. Raises KernelsUnavailable.
    """
    flags = [*_FLAGS, *target, f"-DCARAVAN_LIBRARY={library}"]
    try:
        built = _place(f"{library}-{_fingerprint(flags)}.so", environ)
        if not built.is_file():
            _build(built, flags, environ)
        torch.ops.load_library(built)  # type: ignore[no-untyped-call]  # torch gives it no types
    except OSError as error:
        raise KernelsUnavailable(" ".join(str(error).split())[:300]) from error
    return getattr(torch.ops, library)


def _place(name: str, environ: Mapping[str, str]) -> Path:
    """Return the path of a build that is there or can be written; raises OSError."""
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


def _fingerprint(flags: list[str]) -> str:
    features = {name: value for name, value in torch.cpu.get_capabilities().items() if isinstance(value, bool | str)}
    digest = hashlib.sha256(json.dumps([flags, torch.__version__, features], sort_keys=True).encode())
    for path in sorted((*_FOLDER.glob("*.cpp"), *_FOLDER.glob("*.h"))):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _build(built: Path, flags: list[str], environ: Mapping[str, str]) -> None:
    print("Building the kernels for this processor, once; it takes half a minute.", file=sys.stderr, flush=True)
    # The ninja of this Python's environment is found whether or not that is activated.
    path = os.pathsep.join([str(Path(sys.executable).parent), environ.get("PATH", os.defpath)])
    command = [sys.executable, "-P", "-m", "caravan.model.cpu.compile", str(built), *flags]
    done = subprocess.run(command, env={**environ, "PATH": path}, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        telling = [line for line in lines if "error:" in line] or lines[-1:] or [f"exit status {done.returncode}"]
        raise KernelsUnavailable(telling[0][:300])
