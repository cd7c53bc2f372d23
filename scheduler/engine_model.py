"""EngineModel: what an engine needs of a model. Llama has it, and RankedModel, which several processes compute."""

from typing import Protocol

from torch import Tensor, nn

from caravan.model.config import ModelConfig
from caravan.model.forward_batch import ForwardBatch
from caravan.model.kv_cache import KVCache


class EngineModel(Protocol):
    """A model, from tokens, positions and cache slots to logits."""

    @property
    def config(self) -> ModelConfig:
        """The architecture."""

    @property
    def norm(self) -> nn.Module:
        """The last norm."""

    def check_block_size(self, block_size: int) -> None:
        """Raise ValueError if a KV cache of this model cannot have blocks of that many tokens."""

    def hidden_states(self, batch: ForwardBatch, kv_cache: KVCache) -> Tensor:
        """Return the last layer's output at the batch's wanted_rows, [S, hidden_size], before the last norm."""

    def logits(self, x: Tensor) -> Tensor:
        """Return the logits [S, vocab_size] of the last layer's output x [S, hidden_size], float32."""
