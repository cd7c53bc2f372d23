"""Recording: the tensors of one forward pass of the plain model, kept by hooks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from caravan.model.attention.reference import ReferenceAttention
from caravan.model.config import ModelConfig
from caravan.model.forward_batch import ForwardBatch
from caravan.model.kv_cache import KVCache
from caravan.model.llama import Llama

_PARTS = (  # of the layer that is recorded
    "attention_norm",
    "attention.qkv",
    "attention.query_norm",
    "attention.key_norm",
    "attention",
    "feed_forward_norm",
    "feed_forward.gate_up",
    "feed_forward.down",
    "feed_forward",
)


class RecordingAttention(ReferenceAttention):
    """The reference attention, which keeps the rotated queries, the rotated keys, the values and the mixed values.

    Each list has one tensor for each layer, in order: [T, num_heads, head_dim] or [T, num_kv_heads, head_dim].
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Forget all tensors."""
        self.queries: list[Tensor] = []
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        self.mixed: list[Tensor] = []

    def write(self, keys: Tensor, values: Tensor, key_cache: Tensor, value_cache: Tensor, slot_mapping: Tensor) -> None:
        """Store keys and values in the cache, and keep them."""
        self.keys.append(keys)
        self.values.append(values)
        super().write(keys, values, key_cache, value_cache, slot_mapping)

    def __call__(
        self,
        queries: Tensor,
        key_cache: Tensor,
        value_cache: Tensor,
        batch: ForwardBatch,
        window: int | None = None,
        soft_cap: float | None = None,
        sinks: Tensor | None = None,
    ) -> Tensor:
        """Return the attention of every query over its own sequence, and keep both."""
        mixed = super().__call__(queries, key_cache, value_cache, batch, window, soft_cap, sinks)
        self.queries.append(queries)
        self.mixed.append(mixed)
        return mixed


@dataclass(frozen=True)
class Recording:
    """What one pass over T tokens computed.

    `inputs` and `outputs` are those of modules by their names: "embedding", "layers.0" and so on, the parts of the
    recorded layer without its prefix, such as "attention.qkv", and "norm", which got one row only.
    """

    layer: int
    position: int
    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]
    attention: RecordingAttention
    logits: Tensor  # [vocab_size], float32, of the token after `position`
    lens: Tensor = field(repr=False)  # [num_layers, vocab_size], the logits if the model ended after each layer


def recording_llama(config: ModelConfig) -> Llama:
    """Return the model in plain PyTorch, without weights, with the attention that `record` needs."""
    return Llama(config, RecordingAttention())


@torch.inference_mode()
def record(model: Llama, token_ids: Sequence[int], layer: int, position: int) -> Recording:
    """Return what a `recording_llama` computes for the tokens, all in one step; the model is as before.

    Everything is recorded of one layer; of the others their outputs, queries and keys. Logits are those at `position`.
    """
    attention = model.paged_attention
    assert isinstance(attention, RecordingAttention)
    attention.clear()
    num_tokens = len(token_ids)
    weight = model.embedding.weight
    cache = KVCache(model.config, 1, num_tokens, weight.dtype, weight.device)  # one block
    inputs: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}
    modules = {"embedding": model.embedding, "norm": model.norm}
    modules |= {f"layers.{index}": block for index, block in enumerate(model.blocks())}
    modules |= {part: model.get_submodule(f"layers.{layer}.{part}") for part in _PARTS}
    hooks = [module.register_forward_hook(_keep(name, inputs, outputs)) for name, module in modules.items()]
    try:
        logits = model(_batch(token_ids, position), cache)
    finally:
        for hook in hooks:
            hook.remove()
    rows = torch.stack([outputs[f"layers.{index}"][position] for index in range(model.config.num_layers)])
    return Recording(layer, position, inputs, outputs, attention, logits[0], model.logits(rows))


def _batch(token_ids: Sequence[int], position: int) -> ForwardBatch:
    """Return the step that computes all tokens of one sequence in one block."""
    num_tokens = len(token_ids)
    places = torch.arange(num_tokens)
    return ForwardBatch(
        token_ids=torch.tensor(token_ids),
        positions=places,
        slot_mapping=places,
        query_start_loc=torch.tensor([0, num_tokens], dtype=torch.int32),
        seq_lens=torch.tensor([num_tokens], dtype=torch.int32),
        block_tables=torch.zeros(1, 1, dtype=torch.int32),
        wanted_rows=torch.tensor([position]),
    )


def _keep(
    name: str, inputs: dict[str, Tensor], outputs: dict[str, Tensor]
) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
    """Return a forward hook that keeps the first argument and the result of a module under its name."""

    def keep(_: nn.Module, arguments: tuple[Any, ...], result: Any) -> None:
        inputs[name], outputs[name] = arguments[0], result

    return keep
