"""RoPE: each pair of dimensions is a hand of a clock, the first ones fast, the last ones slow."""

import math

from matplotlib.figure import Figure

from caravan.model.rope import rope_table
from docs.figures.style import COLOURS, TEXT, panels

HEAD_DIM, THETA, NUM_POSITIONS = 16, 10_000.0, 64


def draw() -> Figure:
    """Return the figure."""
    figure, [clock, waves] = panels(8, 3.2, columns=2)
    cos, sin = rope_table(HEAD_DIM, NUM_POSITIONS, THETA)
    clock.set_aspect("equal")
    clock.set_axis_off()
    for pair, colour in zip((0, 1, 2), COLOURS, strict=False):
        radius = 1 - 0.28 * pair
        circle = [2 * math.pi * step / 100 for step in range(101)]
        clock.plot([radius * math.cos(a) for a in circle], [radius * math.sin(a) for a in circle], color=TEXT, lw=0.4)
        for position in range(5):
            x, y = radius * float(cos[position, pair]), radius * float(sin[position, pair])
            clock.plot([0, x], [0, y], color=colour, alpha=0.25 + 0.18 * position, lw=1.4)
            clock.text(1.1 * x, 1.1 * y, str(position), fontsize=7, ha="center", va="center")
    clock.set_title("pairs 0, 1, 2 at positions 0 to 4")
    for pair, colour in zip((0, 2, 4), COLOURS, strict=False):
        waves.plot(cos[:, pair].tolist(), color=colour, label=f"pair {pair}")
    waves.set_xlabel("position")
    waves.set_title("cosine of the angle")
    waves.legend(labelcolor=TEXT, fontsize=8, loc="lower right")
    return figure
