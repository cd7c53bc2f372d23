"""Measure a draft model: `python -m benchmarks.draft_model`, the engine alone, no HTTP.

The default model drafts for two targets that are made here, since a larger model of its family is not fetched:

- `wide`: a construct. The default model with feed-forward networks of 16,384 instead of 1,536, whose additional outputs
  are zero. It generates the default model's own text at the cost of 0.9 billion parameters, so nearly all draft tokens
  are right: what can be won at most, not what a real pair wins.
- `random`: random weights in the shape of SmolLM2-1.7B. No draft token is right: what a useless draft model costs.
"""

import argparse
import dataclasses
import statistics

import msgspec
import torch

from benchmarks.speculation import ORDINARY, PLACES, chat, run
from caravan.download.resolve import DEFAULT_MODEL, resolve_model
from caravan.model.backend import usable_kernels
from caravan.model.checkpoint.checkpoint import Checkpoint, read_weights
from caravan.model.cpu.kernels import Kernels
from caravan.model.cpu.llama import CpuLlama
from caravan.model.llama import Llama
from caravan.model.loader import load_model, open_checkpoint, plain_llama
from caravan.model.tokenizer.loader import load_tokenizer
from caravan.scheduler.config import EngineConfig
from caravan.scheduler.draft_model import DraftModel
from caravan.scheduler.engine import Engine
from caravan.scheduler.scheduler import Scheduler

WIDE_SIZE = 16_384
MAX_LEN = 512
CONFIG = EngineConfig(num_blocks=512, max_model_len=MAX_LEN, speculation="on")
CPU = torch.device("cpu")


def wide_model(checkpoint: Checkpoint, kernels: Kernels) -> Llama:
    """Return the construct `wide`."""
    config = dataclasses.replace(checkpoint.config, intermediate_size=WIDE_SIZE)
    with torch.device("meta"):
        model = CpuLlama(config, kernels, "none")
    for name, weight in read_weights(checkpoint, torch.bfloat16):
        assert isinstance(weight, torch.Tensor)
        if name.endswith("gate_up.weight"):
            more = torch.randn(WIDE_SIZE - checkpoint.config.intermediate_size, config.hidden_size).bfloat16() / 24
            gate, up = weight.chunk(2)
            weight = torch.cat((gate, more, up, more))
        elif name.endswith("down.weight"):
            more = torch.zeros(config.hidden_size, WIDE_SIZE - checkpoint.config.intermediate_size).bfloat16()
            weight = torch.cat((weight, more), dim=1)
        model.place_weight(name, weight)
    model.set_max_position(MAX_LEN, CPU)
    return model.eval()


def random_model(checkpoint: Checkpoint, kernels: Kernels) -> Llama:
    """Return random weights in the shape of SmolLM2-1.7B."""
    config = dataclasses.replace(
        checkpoint.config, hidden_size=2048, intermediate_size=8192, num_layers=24, num_heads=32, num_kv_heads=32
    )
    with torch.device("meta"):
        model = CpuLlama(config, kernels, "none")
        shapes = {name: weight.shape for name, weight in plain_llama(config).named_parameters()}
    generator = torch.Generator().manual_seed(0)
    for name, shape in shapes.items():
        if len(shape) == 1:
            weight = torch.ones(shape, dtype=torch.bfloat16)
        else:
            weight = torch.empty(shape, dtype=torch.bfloat16).uniform_(-1, 1, generator=generator)
            weight *= 2 / shape[1] ** 0.5
        model.place_weight(name, weight)
    model.set_max_position(MAX_LEN, CPU)
    return model.eval()


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", choices=["wide", "random"])
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    path = resolve_model(DEFAULT_MODEL, print)
    checkpoint, tokenizer = open_checkpoint(path), load_tokenizer(path)
    kernels = usable_kernels(CONFIG.block_size)
    assert kernels is not None, "the targets need the kernels"
    target = (wide_model if arguments.target == "wide" else random_model)(checkpoint, kernels)
    draft = load_model(checkpoint, torch.bfloat16, CPU, MAX_LEN, lambda config: CpuLlama(config, kernels, "none"))
    drafting = msgspec.structs.replace(CONFIG, max_draft_model_len=MAX_LEN)
    draft_model = DraftModel(draft, drafting, torch.bfloat16, CPU)
    engines = {
        "without": Engine(target, CONFIG, torch.bfloat16, CPU),
        "with": Engine(target, drafting, torch.bfloat16, CPU, draft_model=draft_model),
    }
    print("target   streams  without tokens/s  with tokens/s  ratio (each round)            accepted  draft seconds")
    for num_streams in arguments.streams:
        names = [f"{place} {number}" for number in range(2) for place in PLACES][:num_streams]
        prompts = [tokenizer.encode(chat(ORDINARY.format(name)), parse_special=True) for name in names]
        rates: dict[str, list[float]] = {name: [] for name in engines}
        found = {}
        for _ in range(arguments.rounds):
            for name, engine in engines.items():
                engine.scheduler = Scheduler(engine.config)
                seconds, answers, stats = run(engine, prompts)
                rates[name].append(sum(map(len, answers)) / seconds)
                found[name] = answers, stats
        assert found["with"][0] == found["without"][0], "the draft model changed a text"
        without, with_drafts = (statistics.median(rates[name]) for name in engines)
        ratios = sorted(one / other for one, other in zip(rates["with"], rates["without"], strict=True))
        stats = found["with"][1]
        counts = [sum(one.num_model_accepted_tokens for one in stats), sum(one.num_model_draft_tokens for one in stats)]
        seconds = sum(one.draft_model_seconds for one in stats) / sum(one.step_seconds for one in stats)
        print(
            f"{arguments.target:8} {num_streams:7} {without:17.1f} {with_drafts:14.1f}  "
            f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}) "
            f"{counts[0]:12} of {counts[1]} {seconds:8.1%}",
            flush=True,
        )


if __name__ == "__main__":
    main()
