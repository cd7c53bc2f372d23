"""Tiny random Llamas for tests, and engines that run them."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from caravan.model.config import ModelConfig
from caravan.model.cpu.llama import CpuLlama
from caravan.model.llama import Llama
from caravan.model.loader import plain_llama
from caravan.scheduler.config import EngineConfig
from caravan.scheduler.draft_model import DraftModel
from caravan.scheduler.engine import Engine
from caravan.scheduler.grammar import Grammars
from caravan.scheduler.messages import Request, SequenceOutput, StepOutput, TokenLogprobs
from caravan.scheduler.overlapped_engine import OverlappedEngine
from caravan.scheduler.sampling_launch import HostSampler
from caravan.scheduler.step_graph import Capture, without_graph
from tests.support.fake_device import FakeDevice

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


MakeModel = Callable[[ModelConfig], Llama]


def tiny_llama(
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    make_model: MakeModel = plain_llama,
    device: str = "cpu",
    **changes: Any,
) -> Llama:
    """Return a random model; the weights are large enough that attention matters and choices are not close."""
    config = replace(TINY, **changes)
    with torch.device("meta"):
        model = make_model(config)
        shapes = {name: parameter.shape for name, parameter in plain_llama(config).named_parameters()}
    generator = torch.Generator().manual_seed(seed)
    for name, shape in shapes.items():
        weight = torch.randn(shape, generator=generator)
        weight = 1 + 0.1 * weight if len(shape) == 1 else weight * 2 / shape[1] ** 0.5
        model.place_weight(name, weight.to(device, torch.float32 if config.is_wide(name) else dtype))
    model.set_max_position(config.max_position, torch.device(device))
    return model.eval()


def kv_dtype_of(model: Llama) -> torch.dtype:
    """Return the data type between the layers, in which keys and values come."""
    return torch.bfloat16 if isinstance(model, CpuLlama) else model.embedding.weight.dtype


def tiny_engine(
    model: Llama,
    kv_dtype: torch.dtype | None = None,
    grammars: Grammars | None = None,
    draft: Llama | None = None,
    fake_device: FakeDevice | None = None,
    capture: Capture = without_graph,
    **limits: Any,
) -> Engine:
    """Return an engine for a tiny model, perhaps with a draft model, with room for a few hundred tokens by default.

    With a fake device its steps overlap.
    """
    defaults: dict[str, Any] = {
        "num_blocks": 64,
        "block_size": 8,
        "max_batch_tokens": 256,
        "max_num_seqs": 16,
        "max_model_len": 256,
    }
    if draft is not None:
        defaults |= {"speculation": "on", "max_draft_model_len": 256}
    config = EngineConfig(**defaults | limits)
    table = model.embedding.weight
    kv_dtype = kv_dtype or table.dtype
    draft_model = None if draft is None else DraftModel(draft, config, kv_dtype, table.device)
    if fake_device is not None:
        return OverlappedEngine(
            model,
            config,
            kv_dtype,
            table.device,
            HostSampler(),
            grammars=grammars,
            draft_model=draft_model,
            capture=capture,
            submit=fake_device.submit,
        )
    return Engine(model, config, kv_dtype, table.device, grammars=grammars, draft_model=draft_model)


@dataclass
class Transcript:
    """What one request got: tokens, logprobs, how it ended. Equal ones are equal to the last bit."""

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    finish_reason: str | None = None
    error: str | None = None
    error_kind: str = "engine"
    num_cached_tokens: int = field(default=0, compare=False)
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)
    embedding: list[float] = field(default_factory=list)
    token_logprobs: list[float] = field(default_factory=list)

    def take(self, output: SequenceOutput) -> None:
        self.token_ids += output.token_ids
        self.logprobs += output.logprobs
        self.finish_reason = output.finish_reason
        self.error = output.error
        self.error_kind = output.error_kind
        self.num_cached_tokens = output.num_cached_tokens
        self.prompt_logprobs += output.prompt_logprobs
        self.embedding = output.embedding
        self.token_logprobs += output.token_logprobs


def run_to_end(
    engine: Engine,
    requests: list[Request],
    arrive_every: int = 0,
    on_step: Callable[[StepOutput], object] = lambda output: None,
) -> dict[int, Transcript]:
    """Return every transcript; with arrive_every, one request arrives in each such number of steps, not all at once."""
    transcripts = {request.request_id: Transcript() for request in requests}
    pending = list(requests)
    num_steps = 0
    while pending or engine.scheduler.has_work:
        while pending and (not arrive_every or num_steps % arrive_every == 0):
            engine.add(pending.pop(0))
            if arrive_every:
                break
        step = engine.step()
        on_step(step)
        for output in step.outputs:
            transcripts[output.request_id].take(output)
        engine.scheduler.pool.check()
        num_steps += 1
        assert num_steps < 10_000, "the workload does not end"
    assert engine.scheduler.pool.num_free == engine.scheduler.pool.num_blocks, "a block leaked"
    return transcripts
