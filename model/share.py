"""Share: which outputs of each weight a rank has, when several processes compute one model together.

Outputs are split, never inputs (docs/decisions/0067-outputs-are-split.md): a sum over inputs is computed by one rank,
in its one order, so the bits do not depend on the number of ranks.
"""

from dataclasses import dataclass, replace

from caravan.model.config import ModelConfig

_TILE = 32  # outputs that the CPU kernels store together; a rank with part of a tile would store all of it


@dataclass(frozen=True)
class Share:
    """The share of one rank; the default is all of the model.

    KV heads are divided between ranks, and query heads go with the KV head that they read. With more ranks than KV
    heads, some ranks have the same KV head and divide its query heads. All other outputs are divided by themselves.
    """

    rank: int = 0
    num_ranks: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.num_ranks:
            raise ValueError(f"There is no rank {self.rank} of {self.num_ranks}.")

    def check(self, config: ModelConfig) -> None:
        """Raise ValueError, in one line, if the model cannot be split between that number of ranks."""
        if self.num_ranks > 1 and (parts := config.parts_of_one_rank()):
            raise ValueError(f"A model with {parts} cannot be split between ranks yet. Remove --tensor-parallel.")
        least = min(config.num_heads, config.hidden_size, config.intermediate_size, config.vocab_size)
        if self.num_ranks > least:
            raise ValueError(
                f"A model with {config.num_heads} query heads and hidden_size {config.hidden_size} can be split "
                f"between at most {least} ranks; there are {self.num_ranks}."
            )

    def kv_heads(self, config: ModelConfig) -> range:
        """Return the KV heads of this rank, at least one."""
        first, last = self._bound(config.num_kv_heads, self.rank), self._bound(config.num_kv_heads, self.rank + 1)
        return range(first, max(last, first + 1))

    def heads(self, config: ModelConfig) -> range:
        """Return the query heads of this rank, at least one; the ranks have them in their order."""
        group = config.num_heads // config.num_kv_heads  # query heads that read one KV head
        kv_heads = self.kv_heads(config)
        if self.num_ranks <= config.num_kv_heads:
            return range(kv_heads.start * group, kv_heads.stop * group)
        sharing = [rank for rank in range(self.num_ranks) if self._bound(config.num_kv_heads, rank) == kv_heads.start]
        part = Share(sharing.index(self.rank), len(sharing))
        first = kv_heads.start * group
        return range(first + part._bound(group, part.rank), first + part._bound(group, part.rank + 1))

    def outputs(self, num_outputs: int) -> range:
        """Return the outputs of this rank: whole tiles of 32 if each rank can have one, or else fewer."""
        tile = _TILE
        while tile > 1 and num_outputs < tile * self.num_ranks:
            tile //= 2
        num_tiles = -(-num_outputs // tile)
        first, last = (tile * self._bound(num_tiles, rank) for rank in (self.rank, self.rank + 1))
        return range(first, min(last, num_outputs))

    def cache_config(self, config: ModelConfig) -> ModelConfig:
        """Return the architecture with the heads of this rank alone, by which its KV cache is made."""
        return replace(config, num_heads=len(self.heads(config)), num_kv_heads=len(self.kv_heads(config)))

    def all(self) -> "list[Share]":
        """Return the shares of all ranks, in their order."""
        return [Share(rank, self.num_ranks) for rank in range(self.num_ranks)]

    def _bound(self, num_units: int, rank: int) -> int:
        """Return the first of a number of units that a rank has, or the number for the rank after the last one."""
        return num_units * rank // self.num_ranks
