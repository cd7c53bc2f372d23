"""The weights of two heads of a tiny model: nothing looks ahead."""

import math

import torch
from matplotlib.figure import Figure

from docs.figures.style import panels

LENGTH, HEAD_DIM = 12, 8


def draw() -> Figure:
    """Return the figure."""
    generator = torch.Generator().manual_seed(3)
    figure, axes = panels(7, 3, columns=2)
    for head, panel in enumerate(axes):
        queries, keys = torch.randn(2, LENGTH, HEAD_DIM, generator=generator) * 1.5
        scores = queries @ keys.T / math.sqrt(HEAD_DIM)
        scores = scores.masked_fill(torch.ones(LENGTH, LENGTH).triu(1).bool(), -math.inf)
        weights = scores.softmax(dim=-1).masked_fill(scores.isinf(), math.nan)
        panel.pcolormesh(weights.numpy(), cmap="viridis", vmin=0, vmax=1, rasterized=False)
        panel.invert_yaxis()
        panel.set_aspect("equal")
        panel.set_xticks(range(0, LENGTH + 1, 4))
        panel.set_yticks(range(0, LENGTH + 1, 4))
        panel.set_xlabel("position of the key")
        panel.set_ylabel("position of the query")
        panel.set_title(f"head {head}")
    return figure
