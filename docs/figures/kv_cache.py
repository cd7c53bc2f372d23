"""Which keys and values are computed in each step, and which are read."""

from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from docs.figures.style import BLUE, ORANGE, TEXT, blank, panels

WORDS = ["The", "sun", "is", "hot", "and", "far"]
PROMPT = 3


def draw() -> Figure:
    """Return the figure."""
    figure, [panel] = panels(6.4, 2.6)
    blank(panel)
    panel.set_xlim(-2.2, len(WORDS))
    panel.set_ylim(-1, 5)
    for step in range(4):
        row = 3 - step
        end = PROMPT + step
        panel.text(-0.3, row + 0.45, "prefill" if step == 0 else f"decode {step}", ha="right", va="center")
        for position in range(end):
            is_new = step == 0 or position == end - 1
            colour = ORANGE if is_new else BLUE
            panel.add_patch(Rectangle((position + 0.05, row + 0.05), 0.9, 0.8, fc=colour, alpha=0.45, ec=colour))
            panel.text(position + 0.5, row + 0.45, WORDS[position], ha="center", va="center", fontsize=9)
    panel.text(0, -0.5, "computed in this step", color=ORANGE, va="center")
    panel.text(3.2, -0.5, "read from the cache", color=BLUE, va="center")
    panel.text(0, 4.5, "keys and values, by position", color=TEXT, va="center", fontsize=9)
    return figure
