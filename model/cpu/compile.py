"""Compile the kernels, in a process of its own: `python model/cpu/compile.py FILE FLAGS`."""

import sys
import tempfile
from pathlib import Path

import torch
from torch.utils import cpp_extension


def main() -> None:
    """Build the library of all kernels and move it to FILE atomically."""
    target, *flags = sys.argv[1:]
    torch.ops.load_library = _leave_alone  # type: ignore[method-assign]  # what was built may be for other processors
    built = Path(target)
    with tempfile.TemporaryDirectory(dir=built.parent, prefix="build-") as folder:
        # Compiled with OpenMP but not linked to it: torch brings its own, and two in one process fight for the cores.
        cpp_extension.load(
            name=built.stem.replace("-", "_"),
            sources=[str(path) for path in sorted(Path(__file__).parent.glob("*.cpp"))],
            extra_cflags=flags,
            extra_ldflags=["-s"],
            build_directory=folder,
            is_python_module=False,
        )
        (library,) = Path(folder).glob("*.so")
        library.replace(built)


def _leave_alone(path: str) -> None:
    """Do nothing instead of loading a library that was built: this processor may lack its instructions."""


if __name__ == "__main__":
    main()
