"""Measure the processor time between two decode steps of a GPU: `python -m benchmarks.step_gap`.

NUM_SEQS sequences decode, and others wait. The device computes nothing, and its tokens are known at once: what is left
is what the host does for each step, which a GPU must not wait for. It leaves out the launches themselves: the copies to
the device, the replay of a graph, the sampler's kernels and its parameters, the events. Times are those of the
processor, not of the clock.
"""

import gc
import statistics
import time
from collections.abc import Sequence as Seq

import torch
from torch import Tensor

from caravan.model.config import ModelConfig
from caravan.model.cuda.staging import Array
from caravan.model.forward_batch import ForwardBatch
from caravan.model.kv_cache import KVCache
from caravan.model.llama import Llama
from caravan.model.loader import plain_llama
from caravan.model.sampling.sample import Sample
from caravan.model.sampling.sampler import FindMasks, SamplingRow
from caravan.model.sampling.sampling_params import SamplingParams
from caravan.scheduler.config import EngineConfig
from caravan.scheduler.messages import Request
from caravan.scheduler.overlap import Pending
from caravan.scheduler.overlapped_engine import OverlappedEngine
from caravan.scheduler.sampling_launch import HostSamples
from caravan.scheduler.sequence import ScheduledSequence

NUM_SEQS = 256
NUM_WAITING = 64
NUM_STEPS = 500
CONTEXT = 1000
MODEL = ModelConfig(
    vocab_size=256,
    hidden_size=8,
    intermediate_size=8,
    num_layers=1,
    num_heads=1,
    num_kv_heads=1,
    head_dim=2,
    max_position=2048,
)


class IdleLlama(Llama):
    """A model that computes nothing."""

    def __init__(self, model: Llama) -> None:
        super().__init__(model.config, model.paged_attention)

    def hidden_states(self, batch: ForwardBatch, kv_cache: KVCache) -> Tensor:  # noqa: ARG002
        """Return zeros [S, 1]."""
        return torch.zeros(len(batch.wanted_rows), 1)

    def logits(self, x: Tensor) -> Tensor:
        """Return x."""
        return x


class IdleSampler:
    """A sampler that draws token 1 everywhere."""

    counts_tokens = False

    def stage(self, rows: Seq[SamplingRow], slots: Seq[int], texts: Seq[Seq[int]]) -> list[Array]:  # noqa: ARG002
        """Return nothing."""
        return []

    def launch(self, logits: Tensor, rows: Seq[SamplingRow], staged: Seq[Tensor]) -> HostSamples:  # noqa: ARG002
        """Return the tokens as Python objects, as a copy from a GPU becomes them."""
        token_ids = torch.ones(len(logits), dtype=torch.int64)
        return HostSamples(token_ids, [Sample(token_id) for token_id in token_ids.tolist()] if rows else [])

    def sample(
        self, logits: Tensor, rows: Seq[SamplingRow], find_masks: FindMasks | None = None
    ) -> list[Sample | None]:
        """Return the tokens of a step that does not overlap; no row has a grammar."""
        assert find_masks is None
        return self.launch(logits, rows, []).result()


class TimedEngine(OverlappedEngine):
    """An engine that sums up the seconds of the parts of a step."""

    seconds: dict[str, float]

    def launch(self, plan: list[ScheduledSequence], num_logits: list[int]) -> Pending:
        """Launch a plan."""
        started = time.thread_time()
        self._prepare(plan)
        staged = self.device_steps.stage(plan, num_logits)
        staged_at = time.thread_time()
        pending = self.device_steps.run(staged)
        self.seconds["stage"] = staged_at - started
        self.seconds["run"] = time.thread_time() - staged_at
        return pending


def make_engine() -> TimedEngine:
    """Return an engine whose sequences all decode at about the same context."""
    config = EngineConfig(
        num_blocks=2 * NUM_SEQS * (CONTEXT + 2 * NUM_STEPS) // 16,
        max_batch_tokens=8192,
        max_num_seqs=NUM_SEQS,
        max_model_len=2048,
    )
    engine = TimedEngine(IdleLlama(plain_llama(MODEL)), config, torch.bfloat16, torch.device("cpu"), IdleSampler())
    engine.seconds = {}
    for index in range(NUM_SEQS + NUM_WAITING):
        prompt = [(index * 7919 + position * 31) % 256 for position in range(CONTEXT)]
        params = SamplingParams(seed=index, max_tokens=3 * NUM_STEPS, temperature=0.8)
        engine.add(Request(request_id=index, prompt_token_ids=prompt, params=params))
    while len(engine.scheduler.running) < NUM_SEQS or any(s.num_output_tokens < 2 for s in engine.scheduler.running):
        engine.step()
    return engine


def main() -> None:
    """Print the median and the 99th percentile of a step's parts."""
    torch.set_num_threads(1)
    engine = make_engine()
    gc.collect()
    gc.freeze()  # as the engine process does on a GPU
    laps: dict[str, list[float]] = {"stage": [], "run": [], "schedule and commit": [], "step": []}
    for _ in range(NUM_STEPS):
        started = time.thread_time()
        output = engine.step()
        seconds = time.thread_time() - started
        assert output.stats.num_decode_tokens == NUM_SEQS
        for name in ("stage", "run"):
            laps[name].append(engine.seconds[name])
        laps["step"].append(seconds)
        laps["schedule and commit"].append(seconds - sum(engine.seconds.values()))
    print(f"milliseconds for {NUM_SEQS} rows      p50     p99")
    for name, times in laps.items():
        ordered = sorted(times)
        print(f"{name:22} {1e3 * statistics.median(ordered):12.3f} {1e3 * ordered[int(0.99 * NUM_STEPS)]:7.3f}")


if __name__ == "__main__":
    main()
