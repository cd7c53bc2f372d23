"""What each kernel may need on a GPU: registers, shared memory, wide loads."""

from collections.abc import Mapping
from types import MappingProxyType

from benchmarks.gpu_kernels import Bounds
from benchmarks.gpu_launches import PACKED

SMALL_SHARED = 99 * 1024  # bytes of shared memory of a program where the capability is 8.6, 8.9 or 12
NVIDIA = ("sm_80", "sm_90", "sm_100")

# A thread has at most 255 registers; 168 let three programs of 128 threads share a multiprocessor, and 128 four.
# Shared memory: the A100 has 163 KB for a program, the MI300X 64 KB.
BOUNDS: Mapping[str, Bounds] = MappingProxyType(
    {
        "add_and_normalize": Bounds(registers=64, wide_loads=3),
        "add_biases": Bounds(registers=32),
        "apply_masks": Bounds(registers=96, wide_loads=16),
        "attend_chunk": Bounds(registers=255, shared=48 * 1024, wide_loads=36),
        "attend_chunk, int8 pool": Bounds(registers=208, shared=24 * 1024),  # a row of the pool has 132 bytes
        "collect": Bounds(registers=64),
        "decode_splits": Bounds(registers=128, shared=48 * 1024, wide_loads=32),
        "decode_splits, int8 pool": Bounds(registers=168, shared=24 * 1024),
        "find_logprobs": Bounds(registers=64),
        "find_maxima": Bounds(registers=96, wide_loads=16),
        "find_top": Bounds(registers=168, wide_loads=8),
        "gate": Bounds(registers=64, wide_loads=2),
        "merge_splits": Bounds(registers=64),
        "multiply, 64 rows": Bounds(registers=64, shared=80 * 1024, wide_loads=36),
        "multiply, 512 rows": Bounds(registers=168, shared=100 * 1024, wide_loads=48),
        "multiply, 2048 rows": Bounds(registers=255, shared=160 * 1024, wide_loads=36),
        **{
            f"multiply_packed, {name}, {num_rows} rows": Bounds(
                registers=registers, shared=shared * 1024, wide_loads=wide
            )
            for name in PACKED
            for num_rows, registers, shared, wide in (
                (16, 128, 68, 20),
                (64, 168, 88, 36),
                (512, 216, 80, 36),
                (2048, 255, 132, 30),
            )
        },
        "normalize_heads": Bounds(registers=32),
        "penalize": Bounds(registers=128, wide_loads=16),
        "pick": Bounds(registers=96),
        "record_tokens": Bounds(registers=32),
        "rotate_and_write": Bounds(registers=64),
        "rotate_and_write, int8 pool": Bounds(registers=64),
        "truncate": Bounds(registers=128),
        "weigh": Bounds(registers=64, wide_loads=16),
        "write_heads_kernel": Bounds(registers=64),
        "write_heads_kernel, int8 pool": Bounds(registers=64),
    }
)
