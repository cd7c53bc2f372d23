"""PagedAttention: the interface that the other files of this folder implement."""

from typing import Protocol

from torch import Tensor

from caravan.model.forward_batch import ForwardBatch


class PagedAttention(Protocol):
    """Causal attention of a flat batch of queries over keys and values in blocks.

    queries [T, num_heads, head_dim]; key_cache and value_cache [num_blocks, block_size, num_kv_heads, head_dim]
    in the queries' dtype, or in int8 with the rows of model/kv_quantization.py.
    Returns [T, num_heads, head_dim] in the queries' dtype. The token at position p of its sequence attends to
    positions 0 to p, or with a window to the last `window` of them (Mistral 7B, arXiv:2310.06825, section 2). Scores
    are divided by sqrt(head_dim) and then capped (model/soft_cap.py) if there is a soft cap. Sinks [num_heads] are one
    more score of each head, which has no value. The sequence's block table locates keys and values. Query head h reads
    KV head h // (num_heads / num_kv_heads). The bits of a row must not depend on the other rows of the batch.
    """

    block_multiple: int  # tokens of which a block has a multiple

    def write(self, keys: Tensor, values: Tensor, key_cache: Tensor, value_cache: Tensor, slot_mapping: Tensor) -> None:
        """Store keys and values, each [T, num_kv_heads, head_dim], at the slots [T], in any layout."""

    def __call__(
        self,
        queries: Tensor,
        key_cache: Tensor,
        value_cache: Tensor,
        batch: ForwardBatch,
        window: int | None,
        soft_cap: float | None = None,
        sinks: Tensor | None = None,
    ) -> Tensor: ...
