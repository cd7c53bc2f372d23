"""Sizes of a run of benchmarks/gpu.py: those of a GPU, and tiny ones for Triton's interpreter on a CPU."""

from dataclasses import dataclass

import torch

from benchmarks.gpu_shapes import LLAMA_8B, Shapes
from caravan.model.config import ModelConfig
from caravan.model.cuda.llama import CudaLlama, CudaQuantization
from caravan.model.loader import plain_llama


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What is computed, and how often. Counts of rows, tokens and steps."""

    device: str  # `cuda` or `cpu`
    shapes: Shapes
    context: int  # tokens of each stream
    streams: tuple[int, ...]  # numbers of streams, ascending
    prompt: int  # tokens of a prompt that is computed at once
    row_counts: tuple[int, ...]  # of matrices whose rows are compared; each tile of a product is among them
    lengths: tuple[int, ...]  # tokens of sequences whose attention is compared with the reference
    oracle_rows: int
    sampler_rounds: int  # rows of logits, 8 at a time, that are sampled on both sides
    equal_layers: int  # of the model whose answers are compared
    equal_tokens: int  # of an answer
    settling_steps: int  # before those that are measured
    decode_steps: int  # that are measured for each number of streams
    trace_steps: int
    max_batch_tokens: int
    launches: int  # of a kernel that is measured, one after the other
    cold_bytes: int  # least size of all operands of these launches: more than a GPU's caches keep

    @property
    def is_gpu(self) -> bool:
        """Whether kernels run on a GPU, not in the interpreter."""
        return self.device == "cuda"


FULL = Sizes(
    device="cuda",
    shapes=LLAMA_8B,
    context=1024,
    streams=(1, 32, 256),
    prompt=2048,
    row_counts=(1, 2, 3, 17, 64, 65, 256, 512, 513, 2048),
    lengths=(1100, 513, 1, 70),
    oracle_rows=70,
    sampler_rounds=16,
    equal_layers=2,
    equal_tokens=24,
    settling_steps=6,
    decode_steps=64,
    trace_steps=20,
    max_batch_tokens=8192,
    launches=20,
    cold_bytes=512_000_000,
)
TINY = Sizes(
    device="cpu",
    shapes=Shapes(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=32,
        num_layers=1,
        num_heads=4,
        num_kv_heads=2,
        head_dim=8,
    ),
    context=10,
    streams=(1, 2),
    prompt=12,
    row_counts=(1, 2, 3),
    lengths=(20, 1),
    oracle_rows=2,
    sampler_rounds=1,
    equal_layers=1,
    equal_tokens=3,
    settling_steps=0,
    decode_steps=2,
    trace_steps=2,
    max_batch_tokens=8,
    launches=1,
    cold_bytes=0,
)


def random_llama(sizes: Sizes, quantization: CudaQuantization, num_layers: int, max_position: int) -> CudaLlama:
    """Return a model of these shapes in bfloat16 on the device, with normally distributed weights made there."""
    shapes, device = sizes.shapes, torch.device(sizes.device)
    config = ModelConfig(
        vocab_size=shapes.vocab_size,
        hidden_size=shapes.hidden_size,
        intermediate_size=shapes.intermediate_size,
        num_layers=num_layers,
        num_heads=shapes.num_heads,
        num_kv_heads=shapes.num_kv_heads,
        head_dim=shapes.head_dim,
        max_position=max_position,
        rope_theta=500_000.0,
    )
    with torch.device("meta"):
        model = CudaLlama(config, device, quantization, fast_matmul=False)
        parameters = {name: parameter.shape for name, parameter in plain_llama(config).named_parameters()}
    generator = torch.Generator(device).manual_seed(0)
    for name, shape in parameters.items():
        weight = torch.randn(shape, generator=generator, device=device, dtype=torch.bfloat16)
        model.place_weight(name, 1 + weight / 10 if len(shape) == 1 else weight * (2 / shape[1] ** 0.5))
    model.set_max_position(max_position, device)
    model.eval()
    return model
