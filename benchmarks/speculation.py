"""Measure speculative decoding: `python -m benchmarks.speculation [--quantization int8]`, the engine alone, no HTTP.

A repetitive task (repeat a text with one change) and an ordinary one, 1 and 8 streams, greedy, with and without it.
"""

import argparse
import statistics
import time

import msgspec

from caravan.download.resolve import DEFAULT_MODEL, resolve_model
from caravan.model.sampling.sampling_params import SamplingParams
from caravan.model.tokenizer.loader import load_tokenizer
from caravan.scheduler.config import EngineLimits
from caravan.scheduler.engine import Engine
from caravan.scheduler.loaded_model import start_engine
from caravan.scheduler.messages import Request, StartEngine, StepStats
from caravan.scheduler.scheduler import Scheduler

TEXT = (
    "The river rises in the hills above the village of {0} and runs for forty miles through woods and meadows. In "
    "spring the water stands high, and the old mill at {0} has to be closed for a week. The miller, whose family has "
    "lived there for two hundred years, says that he has seen worse. Boats go down to the sea from the bridge at {0}, "
    "carrying wool, timber and stone, and come back with salt, wine and letters."
)
REPETITIVE = "Repeat this text word for word, but write Oakford instead of {0}:\n\n" + TEXT
ORDINARY = "Write a short story about a girl from {0} who finds a map in an old house."
PLACES = ("Ashby", "Marlow", "Weston", "Thornbury", "Kelso", "Barford", "Linton", "Dunmore")
NUM_TOKENS = 120
NUM_ROUNDS = 5


def chat(instruction: str) -> str:
    """Return the prompt as the default model's chat template writes it."""
    return f"<|im_start|>user\n{instruction}<|im_end|>\n<|im_start|>assistant\n"


def run(engine: Engine, prompts: list[list[int]]) -> tuple[float, list[list[int]], list[StepStats]]:
    """Return the seconds after the prefill, the generated tokens and the stats of each step."""
    for index, prompt in enumerate(prompts):
        params = SamplingParams(seed=index, max_tokens=NUM_TOKENS, temperature=0.0)
        engine.scheduler.add(Request(request_id=index, prompt_token_ids=prompt, params=params))
    answers: list[list[int]] = [[] for _ in prompts]
    stats = []
    started = time.perf_counter()
    while engine.scheduler.has_work:
        is_prefill = not all(answers)
        output = engine.step()
        for one in output.outputs:
            answers[one.request_id] += one.token_ids
        if is_prefill:
            started = time.perf_counter()
        else:
            stats.append(output.stats)
    return time.perf_counter() - started, answers, stats


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--quantization", choices=["none", "native", "int8", "int4"], default="none")
    arguments = parser.parse_args()
    path = resolve_model(arguments.model, print)
    tokenizer = load_tokenizer(path)
    limits = EngineLimits(kv_cache_memory_bytes=2**28, max_model_len=2048)
    engine = start_engine(StartEngine(model_path=str(path), quantization=arguments.quantization, limits=limits))[0]
    config = engine.scheduler.config
    print("task        streams   off tokens/s    on tokens/s  ratio   steps of off  draft tokens accepted")
    for task, instruction in (("repetitive", REPETITIVE), ("ordinary", ORDINARY)):
        for num_streams in (1, 8):
            prompts = [
                tokenizer.encode(chat(instruction.format(place)), parse_special=True) for place in PLACES[:num_streams]
            ]
            rates: dict[str, list[float]] = {"off": [], "on": []}
            found: dict[str, tuple[list[list[int]], list[StepStats]]] = {}
            for _ in range(NUM_ROUNDS):
                for speculation in rates:
                    engine.scheduler = Scheduler(msgspec.structs.replace(config, speculation=speculation))
                    seconds, answers, stats = run(engine, prompts)
                    rates[speculation].append(sum(map(len, answers)) / seconds)
                    found[speculation] = answers, stats
            assert found["off"][0] == found["on"][0], "speculation changed a text"
            off, on = (statistics.median(rates[speculation]) for speculation in rates)
            steps = len(found["on"][1]) / len(found["off"][1])
            num_drafted = sum(one.num_draft_tokens for one in found["on"][1])
            num_accepted = sum(one.num_accepted_tokens for one in found["on"][1])
            print(
                f"{task:10} {num_streams:8} {off:14.0f} {on:14.0f} {on / off:6.2f} {steps:14.0%} "
                f"{num_accepted:6} of {num_drafted}"
            )


if __name__ == "__main__":
    main()
