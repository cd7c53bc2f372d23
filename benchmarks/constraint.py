"""Measure the cost of constrained text: `python -m benchmarks.constraint`.

Steps of 16 sequences that write JSON are timed in turn with the same steps of free text, in one engine process's parts.
"""

import argparse
import statistics
import time
from pathlib import Path

import torch

from caravan.download.resolve import DEFAULT_MODEL, resolve_model
from caravan.model.backend import choose_backend
from caravan.model.loader import load_model, open_checkpoint
from caravan.model.sampling.sampling_params import SamplingParams
from caravan.model.tokenizer.grammar_tokenizer import grammar_tokenizer
from caravan.model.tokenizer.loader import load_tokenizer
from caravan.scheduler.config import EngineConfig
from caravan.scheduler.engine import Engine
from caravan.scheduler.grammar import Grammars
from caravan.scheduler.messages import Request
from caravan.server.openai.structured_output.schema_grammar import grammar_of_schema

NUM_SEQUENCES = 16
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
}
PEOPLE = {"type": "array", "items": PERSON, "minItems": 500}  # longer than the measurement


def main() -> None:
    """Print the median step of both kinds and the difference."""
    parser = argparse.ArgumentParser(description="Measure the cost of constrained text.")
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    path = Path(resolve_model(arguments.model, print))
    checkpoint = open_checkpoint(path)
    backend = choose_backend(checkpoint, dtype="auto", quantization="auto", block_size=16)
    model = load_model(checkpoint, backend.dtype, torch.device("cpu"), 2048, backend.make_model)
    tokenizer = load_tokenizer(path).resized(model.config.vocab_size)
    grammars = Grammars(lambda: grammar_tokenizer(tokenizer), torch.get_num_threads())
    config = EngineConfig(num_blocks=4096, max_model_len=2048, speculation="off")
    prompt = tokenizer.encode("A list of people as JSON: ")
    for temperature in (0.0, 1.0):
        times: dict[bool, list[float]] = {False: [], True: []}
        for _ in range(arguments.rounds):
            for is_constrained in (False, True):
                engine = Engine(model, config, backend.dtype, torch.device("cpu"), grammars=grammars)
                grammar = grammar_of_schema(PEOPLE) if is_constrained else ""
                times[is_constrained] += step_seconds(engine, prompt, grammar, temperature, arguments.steps)
        free, bound = (1e3 * statistics.median(times[kind]) for kind in (False, True))
        print(
            f"temperature {temperature:g}, {NUM_SEQUENCES} sequences: {free:.2f} ms a step free, "
            f"{bound:.2f} constrained: {100 * (bound / free - 1):+.1f} %"
        )


def step_seconds(engine: Engine, prompt: list[int], grammar: str, temperature: float, num_steps: int) -> list[float]:
    """Return the seconds of each decode step once all sequences run."""
    for index in range(NUM_SEQUENCES):
        params = SamplingParams(seed=index, max_tokens=num_steps + 50, temperature=temperature)
        engine.add(Request(request_id=index, prompt_token_ids=prompt, params=params, grammar=grammar))
    while engine.scheduler.waiting or len(engine.scheduler.running) < NUM_SEQUENCES:
        engine.step()
    times: list[float] = []
    for _ in range(num_steps):
        started = time.perf_counter()
        engine.step()
        times.append(time.perf_counter() - started)
    return times


if __name__ == "__main__":
    main()
