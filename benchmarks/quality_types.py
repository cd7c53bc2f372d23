"""Measure what each type of GGUF file loses when Caravan computes it, beside llama.cpp with the same file.

`python -m benchmarks.quality_types FOLDER --llama-cpp LIBRARIES` takes FOLDER/model-BF16.gguf, has llama.cpp write the
types that FOLDER lacks, and writes a section of docs/quality.md, anew after each type. Everything is compared with
plain PyTorch in float32 over the file's own weights, so that only the computation counts. A file of results keeps the
types measured before; `--types ""` only writes the section.
"""

import argparse
import json
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import gguf
import torch

from benchmarks.llama_cpp import FILE_TYPES, LlamaCpp, LlamaCppFailed, load_llama_cpp, quantize, reading
from benchmarks.machine import machine
from benchmarks.page_sections import with_section
from benchmarks.quality import TYPES_HEADING, Mode, Quality, load_modes, measure_readers, reader_of
from benchmarks.texts import public_texts
from caravan.model.tokenizer.loader import load_tokenizer

ROOT = Path(__file__).parent.parent
MODES = (Mode("float32", dtype="float32"), Mode("bfloat16"), Mode("native", quantization="native"))
FORMS = ("bfloat16", "native", "llama.cpp")
MAX_DIVERGENCE = {"bfloat16": 0.001, "native": 0.002}  # mean, in nats
MAX_DEVIATION = {"native": 0.003}  # of the perplexity, up or down

Results = dict[str, dict[str, Quality]]  # text -> form -> quality


def kinds_in(path: Path) -> dict[str, float]:
    """Return each kind of block of a file's matrices, and its part of their weights, largest first."""
    counts: Counter[str] = Counter()
    for tensor in gguf.GGUFReader(path).tensors:
        if len(tensor.shape) > 1:
            counts[tensor.tensor_type.name] += int(tensor.n_elements)
    return {kind: count / counts.total() for kind, count in counts.most_common()}


def measure_file(
    path: Path, texts: Mapping[str, list[int]], llama_cpp: LlamaCpp, *, window: int, chunk: int
) -> Results:
    """Return the quality of each form on each text."""
    prefix = load_tokenizer(path).encode("", is_open=True)
    max_position = len(prefix) + window
    readers = {
        name: reader_of(model, kv, max_position) for name, (model, kv) in load_modes(path, max_position, MODES).items()
    }
    with reading(llama_cpp, path, max_position, chunk, torch.get_num_threads()) as logits:
        readers["llama.cpp"] = lambda batch: logits(batch.token_ids.tolist(), int(batch.positions[0]))
        return {
            name: measure_readers(readers, token_ids, prefix, window=window, chunk=chunk)
            for name, token_ids in texts.items()
        }


def deviation(qualities: Mapping[str, Quality], form: str) -> float:
    """Return by what part a form's perplexity is above that of float32."""
    return qualities[form].perplexity / qualities["float32"].perplexity - 1


def worst(results: Results, form: str) -> tuple[float, float]:
    """Return the largest divergence of a form over the texts, and the deviation that is farthest from zero."""
    divergence = max(qualities[form].divergence for qualities in results.values())
    return divergence, max((deviation(qualities, form) for qualities in results.values()), key=abs)


def is_held(results: Results, form: str) -> bool:
    """Return whether a form is within its bounds on every text."""
    divergence, part = worst(results, form)
    return divergence < MAX_DIVERGENCE[form] and abs(part) <= MAX_DEVIATION.get(form, float("inf"))


def verdict(file_type: str, results: Results) -> str:
    """Return a line for a terminal: each form at its worst, and whether its bounds hold."""
    parts = []
    for form in FORMS:
        divergence, part = worst(results, form)
        held = {True: ", held", False: ", NOT held"}[is_held(results, form)] if form in MAX_DIVERGENCE else ""
        parts.append(f"{form} {divergence:.5f} {100 * part:+.2f} %{held}")
    return f"{file_type}: {'; '.join(parts)}"


def summary(all_results: Mapping[str, Results], kinds: Mapping[str, Mapping[str, float]]) -> str:
    """Return the table of all types, each form at its worst text."""
    header = ["file", "blocks, part of the weights", *FORMS, "bounds"]
    lines = [_row(header), _row(["---"] * len(header))]
    for file_type, results in all_results.items():
        blocks = ", ".join(f"{kind} {100 * part:.0f} %" for kind, part in kinds[file_type].items() if part >= 0.005)
        cells = ["{:.5f}, {:+.2f} %".format(*_percent(worst(results, form))) for form in FORMS]
        failed = [form for form in MAX_DIVERGENCE if not is_held(results, form)]
        lines.append(_row([file_type, blocks, *cells, f"NOT held: {', '.join(failed)}" if failed else "held"]))
    return "\n".join(lines)


def table(all_results: Mapping[str, Results], text: str) -> str:
    """Return the table of one text: divergence, perplexity to float32 and same next token of each form."""
    header = [
        "file",
        "perplexity of float32",
        *(f"{form} {what}" for what in ("KL", "perplexity", "same next token") for form in FORMS),
    ]
    lines = [_row(header), _row(["---"] * len(header))]
    for file_type, results in all_results.items():
        qualities = results[text]
        cells = [f"{qualities[form].divergence:.5f}" for form in FORMS]
        cells += [f"{100 * deviation(qualities, form):+.2f} %" for form in FORMS]
        cells += [f"{100 * qualities[form].agreement:.1f} %" for form in FORMS]
        lines.append(_row([file_type, f"{qualities['float32'].perplexity:.3f}", *cells]))
    return "\n".join(lines)


def _percent(values: tuple[float, float]) -> tuple[float, float]:
    return values[0], 100 * values[1]


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def section(state: Mapping[str, Any]) -> str:
    """Return the section of the page for a file of results, its types in the order of FILE_TYPES."""
    measured = [file_type for file_type in FILE_TYPES if file_type in state["types"]]
    kinds = {file_type: state["types"][file_type]["kinds"] for file_type in measured}
    all_results: dict[str, Results] = {
        file_type: {
            text: {form: Quality(**fields) for form, fields in qualities.items()}
            for text, qualities in state["types"][file_type]["texts"].items()
        }
        for file_type in measured
    }
    texts = list(next(iter(all_results.values())))
    num_tokens = next(iter(all_results.values()))[texts[0]]["float32"].num_tokens
    settings = state["settings"]
    parts = [
        f"Written by `python -m benchmarks.quality_types`: the default model's weights, widened to BF16 and quantized "
        f"by llama.cpp, on {len(texts)} texts of {num_tokens:,} tokens in windows of {settings['window']:,} and chunks "
        f"of {settings['chunk']:,}. Each file is compared with itself: mean KL divergence from plain PyTorch in "
        "float32 over the file's own weights, and perplexity to that. bfloat16 is `--quantization none`, native the "
        "default, llama.cpp its own computation of the same file with its defaults. "
        f"{settings['processor']} ({settings['features']}).",
        f"Bounds: bfloat16 a divergence below {MAX_DIVERGENCE['bfloat16']}; native below {MAX_DIVERGENCE['native']} "
        f"and a perplexity within {100 * MAX_DEVIATION['native']:.1f} %. This table has the worse of the texts.",
        summary(all_results, kinds),
        "Rows of 576 weights are no multiple of 256, so llama.cpp gives most matrices of this model blocks of 32 "
        "instead; the second column says what a file has. In Q2_K-pure every matrix that can has blocks of Q2_K.",
        *(f"### {text}, each type\n\n{table(all_results, text)}" for text in texts),
    ]
    return "\n\n".join(parts)


def main() -> None:
    """Measure the types, and write the section after each of them."""
    parser = argparse.ArgumentParser(description="Measure the loss of quality of each type of GGUF file.")
    parser.add_argument("folder", type=Path, help="has model-BF16.gguf")
    parser.add_argument("--llama-cpp", type=Path, required=True, help="folder of llama.cpp's libraries")
    parser.add_argument("--types", default=",".join(FILE_TYPES), help="separated by commas")
    parser.add_argument("--tokens", type=int, default=8192, help="of each text")
    parser.add_argument("--window", type=int, default=1024, help="consecutive tokens")
    parser.add_argument("--chunk", type=int, default=512, help="tokens of a step")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "quality_types.json")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "quality.md")
    arguments = parser.parse_args()
    file_types = [file_type for file_type in arguments.types.split(",") if file_type]
    unknown = [file_type for file_type in file_types if file_type not in FILE_TYPES]
    if unknown:
        parser.error(f"unknown types: {', '.join(unknown)}. Known: {', '.join(FILE_TYPES)}.")
    if arguments.tokens < arguments.window:
        parser.error(f"--tokens {arguments.tokens} is less than a window of {arguments.window}.")
    here = machine()
    settings = {name: getattr(arguments, name) for name in ("tokens", "window", "chunk")}
    settings |= {name: here[name] for name in ("processor", "features")}
    state: dict[str, Any] = {"settings": settings, "types": {}}
    if arguments.results.exists():
        state = json.loads(arguments.results.read_text())
        if state["settings"] != settings:
            parser.error(f"{arguments.results} is of {state['settings']}, not of {settings}; move it away.")
    if not file_types:
        if not state["types"]:
            parser.error(f"{arguments.results} has no types. Name some with --types.")
        write_section(state, arguments.out)
        return
    try:
        llama_cpp = load_llama_cpp(arguments.llama_cpp)
    except LlamaCppFailed as error:
        parser.error(str(error))
    source = arguments.folder / "model-BF16.gguf"
    tokenizer = load_tokenizer(source)
    texts = {
        name: tokenizer.encode(text, add_special_tokens=False)[: arguments.tokens + 1]
        for name, text in public_texts().items()
    }
    for file_type in file_types:
        path = arguments.folder / f"model-{file_type}.gguf"
        if not path.exists():
            quantize(llama_cpp, source, path, file_type, os.cpu_count() or 1)
        results = measure_file(path, texts, llama_cpp, window=arguments.window, chunk=arguments.chunk)
        print(verdict(file_type, results), flush=True)
        state["types"][file_type] = {
            "kinds": kinds_in(path),
            "texts": {
                text: {form: asdict(quality) for form, quality in qualities.items()}
                for text, qualities in results.items()
            },
        }
        arguments.results.write_text(json.dumps(state, indent=1) + "\n")
        write_section(state, arguments.out)


def write_section(state: Mapping[str, Any], path: Path) -> None:
    """Write the section into a page, which keeps all its others."""
    page = path.read_text() if path.exists() else "# Quality\n"
    path.write_text(with_section(page, TYPES_HEADING, section(state)))


if __name__ == "__main__":
    main()
