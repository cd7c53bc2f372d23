"""Tiny random Llamas for tests, and engines that run them."""

from dataclasses import replace
from typing import Any

import torch

from model.attention import reference
from model.config import ModelConfig
from model.llama import Llama
from scheduler.config import EngineConfig
from scheduler.engine import Engine
from scheduler.messages import Request, SequenceOutput, TokenLogprobs

TINY = ModelConfig(
    vocab_size=300,
    hidden_size=48,
    intermediate_size=88,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=12,
    max_position=512,
    tie_embeddings=True,
)


def tiny_llama(seed: int = 0, dtype: torch.dtype = torch.float32, **changes: Any) -> Llama:
    """Return a random model; the weights are large enough that attention matters and choices are not close."""
    config = replace(TINY, **changes)
    with torch.device("meta"):
        model = Llama(config, reference.paged_attention)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in list(model.named_parameters()):
        weight = torch.randn(parameter.shape, generator=generator)
        weight = 1 + 0.1 * weight if parameter.dim() == 1 else weight * 2 / parameter.shape[1] ** 0.5
        model.place_weight(name, weight.to(dtype))
    model.set_max_position(config.max_position, torch.device("cpu"))
    return model.eval()


def tiny_engine(model: Llama, **limits: int) -> Engine:
    """Return an engine for a tiny model, with room for a few hundred tokens unless told otherwise."""
    defaults = {"num_blocks": 64, "block_size": 8, "max_batch_tokens": 256, "max_num_seqs": 16, "max_model_len": 256}
    config = EngineConfig(**defaults | limits)
    return Engine(model, config, model.embedding.weight.dtype, torch.device("cpu"))


class Transcript:
    """What one request got: tokens, logprobs, how it ended."""

    def __init__(self) -> None:
        self.token_ids: list[int] = []
        self.logprobs: list[TokenLogprobs] = []
        self.finish_reason: str | None = None
        self.num_cached_tokens = 0

    def take(self, output: SequenceOutput) -> None:
        self.token_ids += output.token_ids
        self.logprobs += output.logprobs
        self.finish_reason = output.finish_reason
        self.num_cached_tokens = output.num_cached_tokens

    def __eq__(self, other: object) -> bool:
        """Whether tokens and logprobs are equal to the last bit."""
        assert isinstance(other, Transcript)
        same = self.token_ids == other.token_ids and self.finish_reason == other.finish_reason
        return same and self.logprobs == other.logprobs

    def __repr__(self) -> str:
        return f"Transcript({self.token_ids}, {[entry.logprob for entry in self.logprobs]}, {self.finish_reason})"

    __hash__ = None  # type: ignore[assignment]


def run_to_end(engine: Engine, requests: list[Request], arrive_every: int = 0) -> dict[int, Transcript]:
    """Return every request's transcript; with arrive_every, one joins each so many steps instead of all at once."""
    transcripts = {request.request_id: Transcript() for request in requests}
    pending = list(requests)
    num_steps = 0
    while pending or engine.scheduler.has_work:
        while pending and (not arrive_every or num_steps % arrive_every == 0):
            engine.scheduler.add(pending.pop(0))
            if arrive_every:
                break
        for output in engine.step().outputs:
            transcripts[output.request_id].take(output)
        engine.scheduler.pool.check()
        num_steps += 1
        assert num_steps < 10_000, "the workload does not end"
    assert engine.scheduler.pool.num_free == engine.scheduler.pool.num_blocks, "a block leaked"
    return transcripts
