"""Write the computed sections of docs/gpu.md: `python -m benchmarks.gpu_page`, three minutes of one core, no GPU."""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from benchmarks.gpu_costs import CONTEXT, GAP, PerWeight, decode_costs, prefill_costs, roof, step_seconds
from benchmarks.gpu_kernels import TARGETS, Figures, figures
from benchmarks.gpu_launches import PACKED_ROWS, all_launches, by_name, product_launches
from benchmarks.gpu_shapes import BFLOAT16, FORMATS, GPUS, INT4, LLAMA_8B, Format, Gpu
from benchmarks.page_sections import with_section
from caravan.model.cuda.product_kernels import INPUTS

PAGE = Path(__file__).parent.parent / "docs" / "gpu.md"
KERNELS_HEADING = "Kernels, compiled ahead of time"
COSTS_HEADING = "Predictions"
TARGETS_HEADING = "Targets on an H200"
TARGET_SHARE = 0.75  # of the roof in bfloat16
TARGET_GAIN = 2.5  # of int4 over bfloat16, for one stream
TARGET_GAP = 50e-6  # seconds between two steps, with graphs
TARGET_PEER = 0.8  # of vLLM's tokens a second, for the most streams
STREAMS = (1, 32, 256)
PROMPT = 2048
EXAMPLE = (next(gpu for gpu in GPUS if gpu.name == "H200"), BFLOAT16, 32)

AllFigures = Mapping[str, Mapping[str, Figures]]  # kernel -> target


def all_figures() -> AllFigures:
    """Return the figures of each kernel on each target."""
    return {
        launch.name: {name: figures(launch, target) for name, target in TARGETS.items()}
        for launch in by_name(all_launches())
    }


def kernels_section(found: AllFigures) -> str:
    """Return the table of kernels."""
    lines = [
        "Registers of a thread, bytes of shared memory of a program, and load instructions from global memory in the",
        "kernel's text, by their width: 16 bytes / 4 to 8 bytes / 1 to 2 bytes. Shapes of Llama 3.1 8B, bfloat16. A",
        "number behind `spilled` is the bytes of a thread that do not fit into registers.",
        "",
        f"| kernel | {' | '.join(TARGETS)} |",
        f"|---|{'---|' * len(TARGETS)}",
        *(f"| {kernel} | {' | '.join(map(_cell, cells.values()))} |" for kernel, cells in sorted(found.items())),
        "",
        "Matrix instructions, as Triton lays them out over the warps of a program: version (2 is mma.sync, 3 wgmma, on",
        "the MI300X that of MFMA), warps, shape; of tcgen05 the rows and columns of a tile.",
        "",
        f"| kernel | {' | '.join(TARGETS)} |",
        f"|---|{'---|' * len(TARGETS)}",
    ]
    for kernel, cells in sorted(found.items()):
        if any(one.matrix_layouts for one in cells.values()):
            layouts = ("; ".join(map(_short, one.matrix_layouts)) for one in cells.values())
            lines.append(f"| {kernel} | {' | '.join(layouts)} |")
    return "\n".join(lines)


def instructions_per_weight(found: AllFigures, target: str) -> PerWeight:
    """Return the instructions that all lanes of a program spend on a weight in the loop of a matrix product."""
    lanes = TARGETS[target].warp_size
    return {
        launch.name: found[launch.name][target].loop
        * lanes
        * launch.options["num_warps"]
        / (launch.options.get("STEP", INPUTS) * launch.options["COLUMNS"])
        for num_rows in PACKED_ROWS
        for launch in product_launches(num_rows)
    }


def costs_section(found: AllFigures) -> str:
    """Return the tables of predictions."""
    gpu, weights, num_streams = EXAMPLE
    counts = {target: instructions_per_weight(found, target) for target in TARGETS}
    costs = decode_costs(LLAMA_8B, weights, num_streams, counts[gpu.target])
    lines = [
        f"**Never measured.** Llama 3.1 8B, {CONTEXT:,} tokens of context, from bytes and operations of each kernel",
        f"and published peaks; {GAP * 1e6:g} microseconds between two kernels are assumed. The first number is tokens",
        "a second, the second the roof: as if a step took no more than to read its weights, keys and values once. fp8",
        "is not implemented. int4 has a scale and an offset for 32 weights, Q4_K_M is a file of that kind, with values",
        "and down projections of half of the layers and the head in Q6_K. Instructions are those of the loops of the",
        "compiled matrix products; a multiprocessor is assumed to start one for each of its schedulers in every clock.",
        "A real kernel reaches no peak, and tiles that are read again from the second cache are not counted.",
        "",
        f"| GPU, weights | {' | '.join(f'{number} streams' for number in STREAMS)} | prefill of {PROMPT:,} |".replace(
            " 1 streams", " 1 stream"
        ),
        f"|---|{'---|' * (len(STREAMS) + 1)}",
        *(_gpu_rows(one, counts[one.target]) for one in GPUS),
        "",
        "Instructions for a weight in the loop of a product, counted in machine code (a tile of up to 128 rows each):",
        "",
        f"| kernel | {' | '.join(TARGETS)} |",
        f"|---|{'---|' * len(TARGETS)}",
        *(
            f"| {kernel} | {' | '.join(f'{counts[target][kernel]:.1f}' for target in TARGETS)} |"
            for kernel in sorted(counts[gpu.target])
        ),
        "",
        f"One step of {num_streams} streams in {weights.name} on {gpu.name}:",
        "",
        "| kernel | launches | MB | matrix GFLOP | microseconds at the peaks |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {cost.kernel} | {cost.launches} | {cost.num_bytes / 1e6:,.1f} | {cost.matrix_operations / 1e9:,.0f} "
        f"| {cost.seconds(gpu) * 1e6:,.1f} |"
        for cost in costs
    ]
    launches = sum(cost.launches for cost in costs)
    total = step_seconds(costs, gpu)
    lines.append(
        f"| all, with gaps | {launches} | {sum(cost.num_bytes for cost in costs) / 1e6:,.1f} "
        f"| {sum(cost.matrix_operations for cost in costs) / 1e9:,.0f} | {total * 1e6:,.1f} |"
    )
    return "\n".join(lines)


def targets_section(per_weight: PerWeight) -> str:
    """Return the table of targets, for the instructions of a weight on an H200."""
    gpu = EXAMPLE[0]

    def predicted(weights: Format, number: int) -> float:
        return number / step_seconds(decode_costs(LLAMA_8B, weights, number, per_weight), gpu)

    lines = [
        f"Llama 3.1 8B's shapes, {CONTEXT:,} tokens of context, tokens a second. A target is a goal, a prediction an",
        "estimate from published peaks ([below](#predictions)). `.venv/bin/python -m benchmarks.gpu` measures all rows",
        "but the last.",
        "",
        "| | target | predicted | measured |",
        "|---|---|---|---|",
    ]
    for number in STREAMS:
        most, expected = roof(LLAMA_8B, BFLOAT16, number, gpu), predicted(BFLOAT16, number)
        streams = "1 stream" if number == 1 else f"{number} streams"
        lines.append(
            f"| bf16, {streams} | {TARGET_SHARE * most:,.0f} ({TARGET_SHARE:.0%} of the roof, {most:,.0f}) "
            f"| {expected:,.0f} ({expected / most:.0%}) | not yet |"
        )
    packed = decode_costs(LLAMA_8B, INT4, 1, per_weight)
    seconds = step_seconds(packed, gpu)
    at_memory_speed = step_seconds([replace(cost, instructions=0) for cost in packed], gpu)
    layers = [cost for cost in packed if cost.kernel.startswith("product") and cost.kernel != "product: head"]
    num_weights = LLAMA_8B.num_layer_weights()
    instructions = sum(cost.instructions for cost in layers)
    reading = INT4.layer_bytes(LLAMA_8B) / gpu.bytes_per_second
    others = seconds - sum(cost.seconds(gpu) for cost in layers)
    plain = 1 / predicted(BFLOAT16, 1)
    num_launches = sum(cost.launches for cost in packed)
    lines += [
        f"| int4 over bf16, 1 stream | {TARGET_GAIN} times | {plain / seconds:.1f} times | not yet |",
        f"| gap between two steps, with graphs | under {1e6 * TARGET_GAP:.0f} microseconds "
        f"| {1e6 * GAP:g} microseconds, assumed | not yet |",
        f"| bf16, {STREAMS[-1]} streams, over vLLM on the same GPU | {TARGET_PEER} times | none | not yet |",
        "",
        f"Why int4 is predicted to miss its target: {instructions / num_weights:.1f} instructions unpack, scale and",
        f"round each of the {num_weights / 1e9:.1f} billion weights of the layers. At the highest clock they take",
        f"{1e3 * instructions / gpu.instructions:.1f} ms, while the bytes of these weights are read in",
        f"{1e3 * reading:.1f} ms. All other kernels, and the assumed gaps between",
        f"{num_launches} launches, take {1e3 * others:.1f} ms more; a whole step of one stream",
        f"in bf16 takes {1e3 * plain:.1f} ms. If unpacking took no time, the gain would be",
        f"{plain / at_memory_speed:.1f} times: the target needs fewer launches, or an output head of few bits, too.",
    ]
    return "\n".join(lines)


def page_with(page: str, found: AllFigures) -> str:
    """Return the page with its computed sections."""
    targets = targets_section(instructions_per_weight(found, EXAMPLE[0].target))
    for heading, body in (
        (TARGETS_HEADING, targets),
        (KERNELS_HEADING, kernels_section(found)),
        (COSTS_HEADING, costs_section(found)),
    ):
        page = with_section(page, heading, body)
    return page


def main() -> None:
    """Write the page."""
    PAGE.write_text(page_with(PAGE.read_text("utf-8"), all_figures()), "utf-8")


def _cell(found: Figures) -> str:
    loads = " / ".join(str(found.num_loads(least, most)) for least, most in ((16, 16), (4, 12), (1, 2)))
    spilled = f", {found.spilled} spilled" if found.spilled else ""
    return f"{found.registers}{spilled}; {found.shared:,}; {loads}"


def _short(layout: str) -> str:
    """Return a layout's numbers, such as `2 0 [1, 4] [16, 8]`: version, warps, shape; of tcgen05 rows and columns."""
    family = "tcgen05 " if "block" in layout else ""
    numbers = " ".join(re.findall(r"= (\[.*?\]|[0-9]+)", layout))
    return f"`{family}{numbers}`"


def _gpu_rows(gpu: Gpu, per_weight: PerWeight) -> str:
    rows = []
    for weights in FORMATS:
        cells = []
        for number in STREAMS:
            seconds = step_seconds(decode_costs(LLAMA_8B, weights, number, per_weight), gpu)
            cells.append(f"{number / seconds:,.0f} of {roof(LLAMA_8B, weights, number, gpu):,.0f}")
        prefill = PROMPT / step_seconds(prefill_costs(LLAMA_8B, weights, PROMPT, per_weight), gpu)
        note = " (products in bf16)" if weights.is_float8 and not gpu.float8 else ""
        rows.append(f"| {gpu.name}, {weights.name}{note} | {' | '.join(cells)} | {prefill:,.0f} |")
    return "\n".join(rows)


if __name__ == "__main__":
    main()
