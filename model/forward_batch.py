"""ForwardBatch: the input of the model for one step."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class ForwardBatch:
    """T tokens of B sequences, end to end without padding; S of the rows are the output.

    Sequence b owns the tokens query_start_loc[b] to query_start_loc[b + 1]: one when it decodes, many when
    its prompt is prefilled. They are the last of its seq_lens[b] tokens; the KV cache has the earlier ones.
    """

    token_ids: Tensor  # [T] int64
    positions: Tensor  # [T] int64, position of each token in its sequence
    slot_mapping: Tensor  # [T] int64, where in the KV cache each token's key and value go
    query_start_loc: Tensor  # [B + 1] int32
    seq_lens: Tensor  # [B] int32, tokens of each sequence after this step
    block_tables: Tensor  # [B, max_blocks] int32, rows padded with zeros
    wanted_rows: Tensor  # [S] int64, tokens whose hidden states after the last layer are the output
    row_slots: Tensor | None = None  # [T] int64, slot of the adapter of each token or -1; None: no token has one
