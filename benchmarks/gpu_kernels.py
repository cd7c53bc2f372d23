"""Compile the GPU's kernels ahead of time, without a GPU, and read what they would need there."""

import re
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.compiler.compiler import make_backend
from triton.runtime.jit import create_function_from_signature

from benchmarks.gpu_launches import Launch

TARGETS: Mapping[str, GPUTarget] = MappingProxyType(
    {
        "sm_80": GPUTarget("cuda", 80, 32),  # A100
        "sm_90": GPUTarget("cuda", 90, 32),  # H100, H200
        "sm_100": GPUTarget("cuda", 100, 32),  # B200
        "gfx942": GPUTarget("hip", "gfx942", 64),  # MI300X
    }
)
_TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"
_NVIDIA_LOAD = re.compile(r"^\s*(?:@\S+\s+)?ld\.global\S*?(?:\.v(\d))?\.[busf](\d+)\s", re.MULTILINE)
_NVIDIA_COPY = re.compile(r"cp\.async\.c[ag]\.shared\.global[^;]*?\],\s*(?:0x)?([0-9a-f]+)", re.MULTILINE)
_AMD_LOAD = re.compile(r"^\s*(?:global|buffer|flat)_load_(\w+)", re.MULTILINE)
_NVIDIA_LINE = re.compile(
    r"^\s*(?:(?P<label>\.L\S+):|/\*[0-9a-f]+\*/\s+[^;]*?(?:`\((?P<target>\.L\S+?)\)[^;]*)?;)", re.MULTILINE
)
# Vector instructions alone: scalar ones, memory and waiting have schedulers of their own.
_AMD_LINE = re.compile(r"^(?:(?P<label>\.LBB\S+):|\t(?:v_|s_c?branch\w*\s+(?P<target>\.LBB\S+)).*$)", re.MULTILINE)
_AMD_BYTES: Mapping[str, int] = MappingProxyType({"dword": 4, "dwordx2": 8, "dwordx3": 12, "dwordx4": 16})


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What a compiled kernel needs, and how it reads memory."""

    registers: int  # of a thread
    spilled: int  # bytes of stack of a thread
    shared: int  # bytes of shared memory of a program
    loads: Mapping[int, int]  # bytes that one instruction loads for a thread -> instructions in the program's text
    num_atomics: int
    matrix_layouts: tuple[str, ...]  # of the matrix instructions: version, warps, shape
    loop: int  # instructions of the longest loop

    def num_loads(self, least: int, most: int = 16) -> int:
        """Return the number of load instructions of least to most bytes."""
        return sum(count for size, count in self.loads.items() if least <= size <= most)


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """What a kernel may need."""

    registers: int = 168  # three programs of 128 threads share a multiprocessor's 65,536 registers
    shared: int = 4096
    wide_loads: int = 0  # of 16 bytes, at least
    narrow_loads: int = 0  # of 1 or 2 bytes, at most


def compiled(launch: Launch, target: GPUTarget) -> Any:
    """Return a launch's kernel as Triton compiles it for a target at run time."""
    backend = make_backend(target)
    bind = create_function_from_signature(launch.kernel.signature, launch.kernel.params, backend)
    bound, specialization, options = bind(*launch.arguments, **launch.options)
    options, signature, constants, attributes = launch.kernel._pack_args(
        backend, launch.options, bound, specialization, options
    )
    source = ASTSource(launch.kernel, signature, constants, attributes)
    return triton.compile(source, target=target, options=options.__dict__)


def without_alignment(launch: Launch) -> Launch:
    """Return a launch whose strides and sizes are not multiples of 16."""
    arguments = tuple(value + 1 if type(value) is int and value % 16 == 0 else value for value in launch.arguments)
    return replace(launch, arguments=arguments)


def figures(launch: Launch, target: GPUTarget) -> Figures:
    """Return the figures of a launch's kernel on a target."""
    kernel = compiled(launch, target)
    return _amd_figures(kernel) if target.backend == "hip" else _nvidia_figures(kernel)


def complaints(found: Figures, bounds: Bounds) -> list[str]:
    """Return what of a kernel is not as it must be; empty if all is."""
    checks = {
        f"{found.spilled} bytes of stack: registers are spilled": found.spilled == 0,
        f"{found.registers} registers of {bounds.registers}": found.registers <= bounds.registers,
        f"{found.shared} bytes of shared memory of {bounds.shared}": found.shared <= bounds.shared,
        f"{found.num_loads(16)} loads of 16 bytes, not {bounds.wide_loads}": found.num_loads(16) >= bounds.wide_loads,
        f"{found.num_loads(1, 2)} loads of 1 or 2 bytes": found.num_loads(1, 2) <= bounds.narrow_loads,
        f"{found.num_atomics} atomic instructions": found.num_atomics == 0,
    }
    return [text for text, is_right in checks.items() if not is_right]


def _nvidia_figures(kernel: Any) -> Figures:
    usage, code = _read_cubin(kernel.asm["cubin"])
    ptx = kernel.asm["ptx"]
    sizes = [int(count or 1) * int(bits) // 8 for count, bits in _NVIDIA_LOAD.findall(ptx)]
    sizes += [int(size, 16) for size in _NVIDIA_COPY.findall(ptx)]
    return Figures(
        registers=_number(r"REG:(\d+)", usage),
        spilled=_number(r"STACK:(\d+)", usage),
        shared=kernel.metadata.shared,
        loads={size: sizes.count(size) for size in sorted(set(sizes))},
        num_atomics=len(re.findall(r"\b(?:atom|red)\.(?!sync)\w+", ptx)),
        matrix_layouts=_layouts(kernel.asm["ttgir"]),
        loop=longest_loop(code, _NVIDIA_LINE),
    )


def _read_cubin(content: bytes) -> tuple[str, str]:
    """Return the usage of resources and the machine code of a kernel, both as text."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(content)
        file.flush()
        commands = ([str(_TOOLS / "cuobjdump"), "-res-usage", file.name], [str(_TOOLS / "nvdisasm"), "-c", file.name])
        texts = [subprocess.run(command, capture_output=True, text=True, check=True).stdout for command in commands]
    return texts[0], texts[1]


def longest_loop(code: str, line: re.Pattern[str]) -> int:
    """Return the number of instructions of the longest loop, from a label to a jump back to it; 0 without a loop."""
    labels: dict[str, int] = {}
    count = longest = 0
    for found in line.finditer(code):
        label, target = found["label"], found["target"]
        if label:
            labels[label] = count
            continue
        count += 1
        if target in labels:
            longest = max(longest, count - labels[target])
    return longest


def _amd_figures(kernel: Any) -> Figures:
    text = kernel.asm["amdgcn"]
    sizes = [_AMD_BYTES.get(name) or (1 if "byte" in name else 2) for name in _AMD_LOAD.findall(text)]
    return Figures(
        registers=_number(r"\.vgpr_count:\s*(\d+)", text),
        spilled=4 * _number(r"\.vgpr_spill_count:\s*(\d+)", text),
        shared=kernel.metadata.shared,
        loads={size: sizes.count(size) for size in sorted(set(sizes))},
        num_atomics=len(re.findall(r"_atomic_", text)),
        matrix_layouts=_layouts(kernel.asm["ttgir"]),
        loop=longest_loop(text, _AMD_LINE),
    )


def _number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    assert found, pattern
    return int(found[1])


def _layouts(ttgir: str) -> tuple[str, ...]:
    """Return the definitions of matrix layouts, without their names."""
    found = re.findall(r"= #ttg\.(?:nvidia_mma|amd_mfma)<\{(.*?)\}>|= #ttng\.tensor_memory_encoding<(.*?)>", ttgir)
    return tuple(sorted({one or other for one, other in found}))
