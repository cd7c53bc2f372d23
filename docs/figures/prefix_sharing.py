"""Three requests with one system prompt: its blocks are in the pool once."""

from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from docs.figures.style import BLUE, GREEN, ORANGE, PURPLE, TEXT, blank, panels


def draw() -> Figure:
    """Return the figure."""
    figure, [panel] = panels(7, 2.6)
    blank(panel)
    panel.set_xlim(-2.4, 12)
    panel.set_ylim(-0.3, 6.6)
    for index in range(4):
        panel.add_patch(Rectangle((2 * index, 5), 1.8, 0.9, fc=PURPLE, alpha=0.35, ec=PURPLE))
    panel.text(3.9, 6.25, "the system prompt's blocks, held three times, computed once", ha="center", color=PURPLE)
    for row, (name, colour) in enumerate((("A", BLUE), ("B", GREEN), ("C", ORANGE))):
        y = 3.2 - 1.4 * row
        panel.text(-2.3, y + 0.4, f"request {name}", color=colour, va="center")
        panel.plot([0, 7.8], [y + 0.45, y + 0.45], color=PURPLE, lw=1.5, ls=":")
        panel.annotate(
            "", (7.8 - 2 * row, 4.95), (7.8 - 2 * row, y + 0.5), arrowprops={"arrowstyle": "->", "color": colour}
        )
        for index in range(1 + row % 2):
            panel.add_patch(Rectangle((8.1 + 1.9 * index, y), 1.8, 0.9, fc=colour, alpha=0.35, ec=colour))
    panel.text(8.1, -0.15, "each its own", color=TEXT, fontsize=8)
    return figure
