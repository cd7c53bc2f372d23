"""Measure the loss of quality of each way to compute a model, through the code that serves.

`python -m benchmarks.quality` runs two public texts through every mode and writes docs/quality.md. A text is read in
windows, each prefilled in chunks over a paged KV cache; the logits of all positions are compared with those of plain
PyTorch in float32. All modes are held in memory at once, so that no logits need to be kept.
"""

import argparse
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from benchmarks.page_sections import section_body, with_section
from benchmarks.texts import public_texts
from caravan.download.resolve import DEFAULT_MODEL, resolve_model
from caravan.model.backend import choose_backend
from caravan.model.checkpoint.checkpoint import Checkpoint
from caravan.model.config import ModelConfig
from caravan.model.cpu.linear import Quantization
from caravan.model.forward_batch import ForwardBatch
from caravan.model.kv_cache import KVCache, KVDtype, choose_kv_dtype
from caravan.model.llama import Llama
from caravan.model.loader import load_model, open_checkpoint, plain_llama
from caravan.model.sampling.sampling_params import SamplingParams
from caravan.model.tokenizer.loader import load_tokenizer
from caravan.scheduler.batch import BatchBuilder
from caravan.scheduler.messages import Request
from caravan.scheduler.sequence import ScheduledSequence, Sequence

BLOCK_SIZE = 16
CPU = torch.device("cpu")
MAX_RATIO = {"native": 1.003, "int8": 1.01, "int4": 1.003}  # of the perplexity to that of bfloat16
MAX_DIVERGENCE = {"native": 0.002}  # mean, from float32, in nats
TYPES_HEADING = "Types of blocks"  # the section of benchmarks/quality_types.py

Reader = Callable[[ForwardBatch], Tensor]  # a step of one sequence -> the logits of its tokens


@dataclass(frozen=True)
class Mode:
    """One way to compute the model; the first of a list is what the others are compared with."""

    name: str
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    quantization: Quantization = "none"
    kv_cache_dtype: KVDtype = "auto"


MODES = (
    Mode("float32", dtype="float32"),
    Mode("float32, KV int8", dtype="float32", kv_cache_dtype="int8"),
    Mode("bfloat16"),
    Mode("bfloat16, KV int8", kv_cache_dtype="int8"),
    Mode("native", quantization="native"),
    Mode("native, KV int8", quantization="native", kv_cache_dtype="int8"),
    Mode("int8", quantization="int8"),
    Mode("int8, KV int8", quantization="int8", kv_cache_dtype="int8"),
    Mode("int4", quantization="int4"),
    Mode("int4, KV int8", quantization="int4", kv_cache_dtype="int8"),
)


@dataclass(frozen=True)
class Quality:
    """Means over the positions of a text."""

    num_tokens: int
    loss: float  # negative log-likelihood of the next token, in nats
    divergence: float  # Kullback-Leibler, from the exact distribution to this one, in nats
    agreement: float  # part of positions with the exact model's likeliest next token

    @property
    def perplexity(self) -> float:
        """The number of equally likely tokens with the same loss."""
        return math.exp(self.loss)


def compare(logits: Tensor, exact: Tensor, next_ids: Tensor) -> Quality:
    """Return the quality of logits [n, vocab_size] for the true next tokens [n], beside the exact model's logits."""
    log_p, exact_log_p = logits.log_softmax(-1), exact.log_softmax(-1)
    return Quality(
        num_tokens=len(next_ids),
        loss=-float(log_p.gather(1, next_ids.unsqueeze(1)).double().mean()),
        divergence=float((exact_log_p.exp() * (exact_log_p - log_p)).sum(-1).double().mean()),
        agreement=float((logits.argmax(-1) == exact.argmax(-1)).double().mean()),
    )


def mean_of(parts: list[Quality]) -> Quality:
    """Return the means over all positions of the parts."""
    total = sum(part.num_tokens for part in parts)

    def mean(values: Iterable[float]) -> float:
        return sum(value * part.num_tokens for value, part in zip(values, parts, strict=True)) / total

    return Quality(
        num_tokens=total,
        loss=mean(part.loss for part in parts),
        divergence=mean(part.divergence for part in parts),
        agreement=mean(part.agreement for part in parts),
    )


def batches(token_ids: list[int], chunk: int) -> Iterable[ForwardBatch]:
    """Yield the steps that prefill one sequence in chunks, with logits wanted everywhere."""
    request = Request(request_id=0, prompt_token_ids=token_ids, params=SamplingParams(seed=0, max_tokens=1))
    sequence = Sequence.of(request)
    sequence.block_table = list(range(-(-len(token_ids) // BLOCK_SIZE)))
    builder = BatchBuilder(1, len(sequence.block_table), BLOCK_SIZE, CPU)
    while sequence.num_computed_tokens < len(token_ids):
        num_tokens = min(chunk, len(token_ids) - sequence.num_computed_tokens)
        batch = builder.build([ScheduledSequence(sequence, num_tokens)])
        yield replace(batch, wanted_rows=torch.arange(num_tokens))
        sequence.num_computed_tokens += num_tokens


def measure(
    models: dict[str, tuple[Llama, torch.dtype]], token_ids: list[int], prefix: list[int], *, window: int, chunk: int
) -> dict[str, Quality]:
    """Return the quality of each model, held against the first, on as many whole windows as there are.

    The type is that of the numbers in the KV cache. `prefix` (BOS) stands before each window. No token is predicted
    twice; each window begins without what came before it.
    """
    readers = {name: reader_of(model, kv, len(prefix) + window) for name, (model, kv) in models.items()}
    return measure_readers(readers, token_ids, prefix, window=window, chunk=chunk)


def reader_of(model: Llama, kv_dtype: torch.dtype, max_position: int) -> Reader:
    """Return a model with a KV cache of its own."""
    num_blocks = -(-max_position // BLOCK_SIZE)
    return partial(model, kv_cache=KVCache(model.config, num_blocks, BLOCK_SIZE, kv_dtype, CPU))


def measure_readers(
    readers: dict[str, Reader], token_ids: list[int], prefix: list[int], *, window: int, chunk: int
) -> dict[str, Quality]:
    """Return the same of whatever computes the logits of each step: [T, vocab_size] for its T tokens."""
    parts: dict[str, list[Quality]] = {name: [] for name in readers}
    for start in range(0, len(token_ids) - window, window):
        inputs = prefix + token_ids[start : start + window]
        next_ids = torch.tensor([*inputs[1:], token_ids[start + window]])
        done = 0
        for batch in batches(inputs, chunk):
            targets = next_ids[done : done + len(batch.token_ids)]
            done += len(batch.token_ids)
            exact: Tensor | None = None
            for name, read in readers.items():
                logits = read(batch)
                exact = logits if exact is None else exact
                parts[name].append(compare(logits, exact, targets))
    return {name: mean_of(qualities) for name, qualities in parts.items()}


def load_modes(path: Path, window: int, modes: Iterable[Mode] = MODES) -> dict[str, tuple[Llama, torch.dtype]]:
    """Return the model in each mode, with the type of the numbers in its KV cache."""
    checkpoint = open_checkpoint(path)
    loaded: dict[tuple[str, str], tuple[Llama, torch.dtype]] = {}
    models: dict[str, tuple[Llama, torch.dtype]] = {}
    for mode in modes:
        weights = mode.dtype, mode.quantization
        if weights not in loaded:
            dtype, make_model = _computed(checkpoint, mode)
            loaded[weights] = load_model(checkpoint, dtype, CPU, window, make_model), dtype
        model, dtype = loaded[weights]
        models[mode.name] = model, choose_kv_dtype(mode.kv_cache_dtype, dtype)
    return models


def _computed(checkpoint: Checkpoint, mode: Mode) -> tuple[torch.dtype, Callable[[ModelConfig], Llama]]:
    """Return what computes a mode: in float32 plain PyTorch, otherwise what the server would take."""
    if mode.dtype == "float32":
        return torch.float32, plain_llama
    backend = choose_backend(checkpoint, dtype=mode.dtype, quantization=mode.quantization, block_size=BLOCK_SIZE)
    return backend.dtype, backend.make_model


def table(results: dict[str, dict[str, Quality]]) -> str:
    """Return the results of each text as lines of Markdown."""
    lines = []
    for text, qualities in results.items():
        num_tokens = next(iter(qualities.values())).num_tokens
        base = qualities["bfloat16"].perplexity
        lines += [f"### {text}, {num_tokens:,} tokens", ""]
        lines += ["| mode | perplexity | to bfloat16 | same next token | mean KL divergence |", "|---|---|---|---|---|"]
        lines += [
            f"| {name} | {quality.perplexity:.3f} | {100 * (quality.perplexity / base - 1):+.2f} % "
            f"| {100 * quality.agreement:.1f} % | {quality.divergence:.5f} |"
            for name, quality in qualities.items()
        ]
        lines.append("")
    return "\n".join(lines)


def verdict(results: dict[str, dict[str, Quality]]) -> str:
    """Return a line for each mode with a limit: the limit, the worst text, whether it holds."""
    lines = []
    for mode, limit in MAX_RATIO.items():
        worst = max(qualities[mode].perplexity / qualities["bfloat16"].perplexity for qualities in results.values())
        lines.append(
            f"- {mode}: perplexity within {100 * (limit - 1):.1f} % of bfloat16, "
            f"{'held' if worst <= limit else 'NOT held'} ({100 * (worst - 1):+.2f} % at worst)"
        )
    for mode, limit in MAX_DIVERGENCE.items():
        worst = max(qualities[mode].divergence for qualities in results.values())
        lines.append(
            f"- {mode}: mean KL divergence from float32 within {limit}, "
            f"{'held' if worst <= limit else 'NOT held'} ({worst:.5f} at worst)"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Print the table and write it to a file."""
    parser = argparse.ArgumentParser(description="Measure the loss of quality of each way to compute a model.")
    parser.add_argument("--model", default=DEFAULT_MODEL, help="as for caravan serve")
    parser.add_argument("--text", action="append", type=Path, help="a text file to use instead; repeatable")
    parser.add_argument("--tokens", type=int, default=8192, help="of each text")
    parser.add_argument("--window", type=int, default=1024, help="consecutive tokens")
    parser.add_argument("--chunk", type=int, default=512, help="tokens of a step")
    parser.add_argument("--out", type=Path, default=Path("docs/quality.md"))
    arguments = parser.parse_args()
    path = resolve_model(arguments.model, print)
    tokenizer = load_tokenizer(path)
    files = {file.name: file.read_text("utf-8") for file in arguments.text} if arguments.text else public_texts()
    texts = {
        name: tokenizer.encode(text, add_special_tokens=False)[: arguments.tokens + 1] for name, text in files.items()
    }
    for name, token_ids in texts.items():
        if len(token_ids) <= arguments.window:
            parser.error(f"{name} has {len(token_ids)} tokens, not more than a window of {arguments.window}.")
    prefix = tokenizer.encode("", is_open=True)
    models = load_modes(path, len(prefix) + arguments.window)
    results = {}
    for name, token_ids in texts.items():
        results[name] = measure(models, token_ids, prefix, window=arguments.window, chunk=arguments.chunk)
        print(table({name: results[name]}), flush=True)
    print(verdict(results), end="")
    page = (
        f"# Quality\n\nWritten by `python -m benchmarks.quality`: {path.name}, windows of {arguments.window:,} tokens, "
        f"chunks of {arguments.chunk:,}.\nEverything but float32, which is plain PyTorch, runs through the kernels "
        f"and the paged KV cache that serve;\nthe same next token and the divergence are against float32.\n\n"
        f"{verdict(results)}\n{table(results)}"
    )
    old = arguments.out.read_text() if arguments.out.exists() else ""  # another command writes the section of types
    arguments.out.write_text(with_section(page.rstrip() + "\n", TYPES_HEADING, section_body(old, TYPES_HEADING)))


if __name__ == "__main__":
    main()
