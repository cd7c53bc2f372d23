"""One layer of Llama, from token ids to logits."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from docs.figures.style import BLUE, GREEN, ORANGE, PURPLE, TEXT, blank, panels

BOXES = [  # name, note, colour, height
    ("logits", "[T, vocab_size]", TEXT),
    ("output head", "Linear, or the embedding again", PURPLE),
    ("RMSNorm", "", GREEN),
    ("+", "", TEXT),
    ("SwiGLU feed-forward", "down(silu(gate) * up)", ORANGE),
    ("RMSNorm", "", GREEN),
    ("+", "", TEXT),
    ("attention", "RoPE on Q and K, paged KV cache", BLUE),
    ("RMSNorm", "", GREEN),
    ("token embedding", "[T] to [T, hidden_size]", PURPLE),
    ("token ids", "[T]", TEXT),
]


def draw() -> Figure:
    """Return the figure."""
    figure, [panel] = panels(6.2, 5.6)
    blank(panel)
    panel.set_xlim(0, 11.6)
    panel.set_ylim(-0.6, len(BOXES))
    for row, (name, note, colour) in enumerate(reversed(BOXES)):
        _box(panel, row, name, note, colour)
        if row:
            panel.annotate("", (4, row - 0.3), (4, row - 0.62), arrowprops={"arrowstyle": "->", "color": TEXT})
    for start, end in ((1.5, 4), (4.5, 7)):  # the residual stream goes round attention and feed-forward
        panel.plot([4, 1.1, 1.1, 3.4], [start, start, end, end], color=TEXT, linewidth=1)
        panel.text(0.9, (start + end) / 2, "residual", rotation=90, ha="right", va="center", fontsize=8)
    panel.plot([9.6, 9.9, 9.9, 9.6], [1.6, 1.6, 7.4, 7.4], color=TEXT, linewidth=1)
    panel.text(10.1, 4.5, "num_layers\ntimes", va="center", fontsize=9)
    return figure


def _box(panel: Axes, row: int, name: str, note: str, colour: str) -> None:
    if name == "+":
        panel.text(
            4, row, "+", ha="center", va="center", fontsize=13, bbox={"boxstyle": "circle", "fc": "none", "ec": TEXT}
        )
        return
    style = "round,pad=0.02,rounding_size=0.12"
    panel.add_patch(FancyBboxPatch((1.8, row - 0.3), 4.4, 0.6, boxstyle=style, fc=colour, ec=colour, alpha=0.25))
    panel.text(4, row, name, ha="center", va="center")
    panel.text(6.35, row, note, va="center", fontsize=7.5)
