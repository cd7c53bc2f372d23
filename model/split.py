"""Split: a model of which this process computes one rank's outputs, and gets those of the other ranks."""

from dataclasses import dataclass

from torch import Tensor

from caravan.model.config import ModelConfig
from caravan.model.exchange import Exchange
from caravan.model.feed_forward import FeedForward
from caravan.model.llama import Llama
from caravan.model.share import Share


@dataclass(frozen=True)
class GatherFromRanks:
    """Makes some outputs whole again."""

    exchange: Exchange
    sizes: list[int]  # outputs of each rank

    def __call__(self, part: Tensor) -> Tensor:
        """Return the parts [T, sizes[rank]] of all ranks side by side, [T, sum(sizes)]. Raises ExchangeFailed."""
        return self.exchange.gather(part, self.sizes)


@dataclass(frozen=True)
class Split:
    """How the outputs of a model are divided: numbers of each rank, in their order."""

    share: Share  # of this rank
    exchange: Exchange
    heads: list[int]  # of the result of attention
    hidden: list[int]
    inner: list[int]  # of the feed-forward network
    vocab: list[int]


def split_of(config: ModelConfig, share: Share, exchange: Exchange) -> Split:
    """Return how a model is divided; raises ValueError, in one line, if it cannot be or the exchange does not fit."""
    share.check(config)
    if (share.rank, share.num_ranks) != (exchange.rank, exchange.num_ranks):
        raise ValueError(
            f"The share is that of rank {share.rank} of {share.num_ranks}, the exchange that of rank {exchange.rank} "
            f"of {exchange.num_ranks}."
        )

    def sizes(num_outputs: int) -> list[int]:
        return [len(each.outputs(num_outputs)) for each in share.all()]

    return Split(
        share=share,
        exchange=exchange,
        heads=[len(each.heads(config)) * config.head_dim for each in share.all()],
        hidden=sizes(config.hidden_size),
        inner=sizes(config.intermediate_size),
        vocab=sizes(config.vocab_size),
    )


def split_model(model: Llama, split: Split) -> None:
    """Leave one rank's outputs in each linear layer of a model that has no weights yet, and gather those of all ranks.

    Each product needs all of its inputs, so a layer gathers four times: what attention mixed, what attention adds to
    x, what SwiGLU returns, and what the feed-forward network adds to x.
    """
    rank, config = split.share.rank, model.config
    heads, hidden, inner, vocab = (
        GatherFromRanks(split.exchange, sizes) for sizes in (split.heads, split.hidden, split.inner, split.vocab)
    )
    for block in model.blocks():
        attention, feed_forward = block.attention, block.feed_forward
        assert isinstance(feed_forward, FeedForward), "Share.check refuses experts"
        attention.num_heads = len(split.share.heads(config))
        attention.num_kv_heads = len(split.share.kv_heads(config))
        attention.qkv.keep_outputs((attention.num_heads + 2 * attention.num_kv_heads) * config.head_dim)
        attention.output.keep_outputs(split.hidden[rank])
        feed_forward.gate_up.keep_outputs(2 * split.inner[rank])
        feed_forward.down.keep_outputs(split.hidden[rank])
        attention.gather_heads, attention.gather_output = heads, hidden
        feed_forward.gather_inner, feed_forward.gather_output = inner, hidden
    rows = split.share.outputs(config.vocab_size)
    if model.output is not None:
        model.output.keep_outputs(len(rows))
    model.head_rows, model.gather_logits = slice(rows.start, rows.stop), vocab
    model.split = split
    model.can_be_graph = False  # an exchange waits for other processes
