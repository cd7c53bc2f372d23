"""Measure the kernels against what this machine can do: `python -m benchmarks.kernels`.

Linear layers of the model at several numbers of rows, whole steps, attention of sequences that decode at several
contexts, and of a prefill; beside each figure its part of the limit, which is reading bytes or multiplying, whichever
takes longer.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils import cpp_extension

from caravan.download.resolve import DEFAULT_MODEL, resolve_model
from caravan.model.attention.cpu import NO_CAP, NO_WINDOW
from caravan.model.config import ModelConfig
from caravan.model.cpu.build import load_kernels
from caravan.model.cpu.linear import PackedLinear, Quantization
from caravan.model.cpu.llama import CpuLlama
from caravan.model.forward_batch import ForwardBatch
from caravan.model.kv_cache import KVCache, kv_bytes_per_token
from caravan.model.loader import load_model, open_checkpoint

BLOCK_SIZE = 16
NUM_SEQUENCES = 16
MAX_POSITIONS = 65_536  # of all sequences together: an 8B model's keys and values of more do not fit in 24 GiB
CONTEXTS = (128, 1024, 4096, 8192)
NUM_ROWS = (1, 8, 32, 512)
STEPS = ((1, 1, 128), (8, 1, 128), (32, 1, 128), (1, 512, 512))  # sequences, tokens of each, context
MAX_BANDWIDTH_LOSS = 0.7  # part of the read bandwidth with which the keys and values of a longer context must be read
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Machine:
    """The limits of all cores together."""

    bytes_per_second: float
    operations_per_second: dict[str, float]  # bfloat16 and int8, multiplications and additions


def best_seconds(run: Callable[[], object], seconds: float) -> float:
    """Return the shortest of the runs that fit into `seconds`, at least three."""
    run()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < end:
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return min(times)


def measure_machine(seconds: float) -> Machine:
    """Return the machine's limits, as torch's own sum and the kernels' products reach them."""
    peak = _load_peak()
    return Machine(
        bytes_per_second=read_bandwidth(seconds),
        operations_per_second={
            "bfloat16": max(peak(False) for _ in range(5)),
            "int8": max(peak(True) for _ in range(5)),
        },
    )


def read_bandwidth(seconds: float) -> float:
    """Return how many bytes a second all cores read from memory together, as torch's own sum reaches it."""
    numbers = torch.ones(128 * 1024 * 1024)
    return numbers.nbytes / best_seconds(numbers.sum, seconds)


def _load_peak() -> Callable[[bool], float]:
    """Build benchmarks/peak.cpp for this processor and return what it measures: operations a second."""
    os.environ["PATH"] = os.pathsep.join(
        [str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]
    )  # ninja
    cpp_extension.load(
        name="caravan_peak",
        sources=[str(Path(__file__).with_name("peak.cpp"))],
        extra_include_paths=[str(Path(__file__).parents[1] / "model" / "cpu")],
        extra_cflags=["-O3", "-std=c++20", "-fopenmp", "-Wno-psabi", "-march=native"],
        is_python_module=False,
    )
    found: Callable[[bool], float] = torch.ops.caravan_peak.peak.default
    return found


def print_line(
    name: str, seconds: float, num_bytes: float, num_operations: float, peak: float, machine: Machine
) -> None:
    """Print one measurement and its part of the limit."""
    limit = max(num_bytes / machine.bytes_per_second, num_operations / peak)
    print(
        f"{name:<44} {seconds * 1e3:8.2f} ms {num_bytes / seconds / 1e9:7.1f} GB/s "
        f"{num_operations / seconds / 1e9:7.0f} GOP/s {100 * limit / seconds:4.0f} % of the limit",
        flush=True,
    )


def measure_linears(layers: list[PackedLinear], name: str, peak: float, machine: Machine, seconds: float) -> None:
    """Print how long linear layers take one after the other."""
    num_bytes = sum(part.nbytes for layer in layers for part in layer.passed()[0])
    num_weights = sum(layer.in_features * layer.out_features for layer in layers)
    for num_rows in NUM_ROWS:
        inputs = {layer.in_features: torch.randn(num_rows, layer.in_features).bfloat16() for layer in layers}

        def run(inputs: dict[int, torch.Tensor] = inputs) -> None:
            for layer in layers:
                layer(inputs[layer.in_features])

        elapsed = best_seconds(run, seconds)
        print_line(f"{name}, {num_rows} rows", elapsed, num_bytes, 2 * num_weights * num_rows, peak, machine)


def measure_steps(model: CpuLlama, name: str, peak: float, machine: Machine, seconds: float) -> None:
    """Print how long the whole model takes for steps that decode and for one that prefills."""
    config = model.config
    linears = [module for module in model.modules() if isinstance(module, PackedLinear)]
    num_weights = sum(linear.in_features * linear.out_features for linear in linears if linear is not model.output)
    num_head_weights = model.output.in_features * model.output.out_features
    for num_sequences, num_queries, length in STEPS:
        tables = torch.randperm(num_sequences * length // BLOCK_SIZE).int().view(num_sequences, -1)
        owners = torch.arange(num_sequences).repeat_interleave(num_queries)
        positions = torch.arange(length - num_queries, length).repeat(num_sequences)
        starts = torch.arange(num_sequences + 1, dtype=torch.int32) * num_queries
        batch = ForwardBatch(
            token_ids=torch.randint(config.vocab_size, (len(owners),)),
            positions=positions,
            slot_mapping=tables[owners, positions // BLOCK_SIZE].long() * BLOCK_SIZE + positions % BLOCK_SIZE,
            query_start_loc=starts,
            seq_lens=torch.full((num_sequences,), length, dtype=torch.int32),
            block_tables=tables,
            wanted_rows=starts[1:].long() - 1,
        )
        cache = KVCache(config, tables.numel(), BLOCK_SIZE, torch.bfloat16, CPU)
        for pool in cache.keys + cache.values:
            pool.zero_()
        elapsed = best_seconds(lambda: model(batch, cache), seconds)  # noqa: B023  # runs at once
        num_pairs = num_sequences * sum(range(length - num_queries + 1, length + 1))
        num_operations = 2 * num_weights * len(owners) + 2 * num_head_weights * num_sequences
        num_operations += 4 * config.num_layers * config.num_heads * config.head_dim * num_pairs
        num_bytes = sum(part.nbytes for linear in linears for part in linear.passed()[0]) + cache.num_bytes
        title = f"step {name}, {num_sequences} x {num_queries} at context {length}"
        print_line(title, elapsed, num_bytes, num_operations, peak, machine)


class Attention:
    """Attention of all layers of a model, each over pages of its own, so that no cache holds them."""

    def __init__(
        self, config: ModelConfig, kernels: Any, kv_dtype: torch.dtype, num_sequences: int, length: int
    ) -> None:
        self.config, self.kernels, self.num_sequences, self.length = config, kernels, num_sequences, length
        num_blocks = num_sequences * (length // BLOCK_SIZE)
        self.cache = KVCache(config, num_blocks, BLOCK_SIZE, kv_dtype, CPU)
        self.num_bytes = num_blocks * BLOCK_SIZE * kv_bytes_per_token(config, kv_dtype)
        self.tables = torch.randperm(num_blocks).int().view(num_sequences, -1)
        keys = torch.randn(num_blocks * BLOCK_SIZE, config.num_kv_heads, config.head_dim).bfloat16()
        for pages in zip(self.cache.keys, self.cache.values, strict=True):
            kernels.write(keys, keys, torch.arange(len(keys)), *pages)

    def run(self, num_queries: int) -> float:
        """Return the seconds of one run in which each sequence computes its last num_queries tokens."""
        config = self.config
        queries = torch.randn(self.num_sequences * num_queries, config.num_heads, config.head_dim).bfloat16()
        starts = torch.arange(self.num_sequences + 1, dtype=torch.int32) * num_queries
        lengths = torch.full((self.num_sequences,), self.length, dtype=torch.int32)
        started = time.perf_counter()
        for pages in zip(self.cache.keys, self.cache.values, strict=True):
            self.kernels.attend(queries, *pages, starts, lengths, self.tables, NO_WINDOW, NO_CAP)
        return time.perf_counter() - started


def measure_attention(config: ModelConfig, kernels: Any, machine: Machine, seconds: float) -> None:
    """Print decoding at each context and a prefill, for both pools, and whether long contexts keep their limit."""
    peak = machine.operations_per_second["bfloat16"]
    per_pair = 4 * config.num_layers * config.num_heads * config.head_dim  # operations of a query and a position
    for kv_dtype in (torch.bfloat16, torch.int8):
        name = str(kv_dtype).removeprefix("torch.")
        times: dict[int, float] = {}
        sizes: dict[int, int] = {}
        for length in CONTEXTS:
            num_sequences = min(NUM_SEQUENCES, MAX_POSITIONS // length)
            attention = Attention(config, kernels, kv_dtype, num_sequences, length)
            sizes[length] = attention.num_bytes
            times[length] = best_seconds(lambda: attention.run(1), seconds)  # noqa: B023  # runs at once
            title = f"attention, {name} pool, {num_sequences} at context {length:,}"
            operations = num_sequences * length * per_pair
            print_line(title, times[length], attention.num_bytes, operations, peak, machine)
        short, long = CONTEXTS[0], CONTEXTS[-1]
        allowed = (sizes[long] - sizes[short]) / (MAX_BANDWIDTH_LOSS * machine.bytes_per_second)
        extra = times[long] - times[short]
        print(
            f"  context {long:,} costs {extra * 1e3:.1f} ms more than {short:,}; "
            f"at {100 * MAX_BANDWIDTH_LOSS:.0f} % of the bandwidth {allowed * 1e3:.1f}: "
            f"{'held' if extra <= allowed else 'NOT held'}"
        )
        prefill = Attention(config, kernels, kv_dtype, 1, 1024)
        elapsed = best_seconds(lambda: prefill.run(1024), seconds)  # noqa: B023
        title = f"attention, {name} pool, prefill of 1,024"
        print_line(title, elapsed, prefill.num_bytes, 1024 * 1025 // 2 * per_pair, peak, machine)


def main() -> None:
    """Print all figures."""
    parser = argparse.ArgumentParser(description="Measure the kernels against what this machine can do.")
    parser.add_argument("--model", default=DEFAULT_MODEL, help="as for caravan serve")
    parser.add_argument("--seconds", type=float, default=1.0, help="for each figure")
    parser.add_argument("--only", choices=["linear", "attention"])
    parser.add_argument("--quantizations", default="none,native,int8,int4", help="separated by commas")
    arguments = parser.parse_args()
    os.environ["THP_MEM_ALLOC_ENABLE"] = "1"  # huge pages, as the engine process has them
    machine = measure_machine(arguments.seconds)
    peaks = machine.operations_per_second
    print(f"{torch.get_num_threads()} threads, reads {machine.bytes_per_second / 1e9:.1f} GB/s, ", end="")
    print(", ".join(f"{peak / 1e9:.0f} GOP/s in {name}" for name, peak in peaks.items()))
    checkpoint = open_checkpoint(resolve_model(arguments.model, print))
    kernels = load_kernels()
    # What rows are multiplied in.
    modes: dict[Quantization, str] = {"none": "bfloat16", "native": "int8", "int8": "int8", "int4": "bfloat16"}
    for quantization, multiplied in modes.items():
        if arguments.only == "attention" or quantization not in arguments.quantizations.split(","):
            continue
        model = load_model(
            checkpoint,
            torch.bfloat16,
            CPU,
            STEPS[-1][-1],
            lambda config: CpuLlama(config, kernels, quantization),  # noqa: B023
        )
        assert isinstance(model, CpuLlama)
        name = "bfloat16" if quantization == "none" else quantization
        layers = [module for layer in model.layers for module in layer.modules() if isinstance(module, PackedLinear)]
        measure_linears(layers, f"linear {name}", peaks[multiplied], machine, arguments.seconds)
        measure_linears([model.output], f"head {name}", peaks[multiplied], machine, arguments.seconds)
        measure_steps(model, name, peaks[multiplied], machine, arguments.seconds)
    if arguments.only != "linear":
        measure_attention(checkpoint.config, kernels, machine, arguments.seconds)


if __name__ == "__main__":
    main()
