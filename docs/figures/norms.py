"""RMSNorm keeps where a vector points; LayerNorm first takes its mean away."""

import torch
from matplotlib.figure import Figure

from docs.figures.style import BLUE, GREEN, ORANGE, panels

VECTOR = torch.tensor([3.0, 2.2, 4.1, 1.0, 2.6, 3.4, 1.9, 2.8])


def draw() -> Figure:
    """Return the figure."""
    rms = VECTOR / VECTOR.pow(2).mean().sqrt()
    layer = (VECTOR - VECTOR.mean()) / VECTOR.std(correction=0)
    figure, axes = panels(8, 2.4, columns=3)
    for panel, values, title, colour in zip(
        axes, (VECTOR, rms, layer), ("x", "RMSNorm(x)", "LayerNorm(x)"), (ORANGE, BLUE, GREEN), strict=True
    ):
        panel.bar(range(len(values)), values.tolist(), color=colour)
        panel.axhline(float(values.mean()), color=colour, lw=1, ls="--")
        panel.set_title(f"{title}, mean {float(values.mean()):.2f}")
        panel.set_xlabel("dimension")
    return figure
