"""Two sequences, their block tables, and the pool they point into."""

from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from docs.figures.style import BLUE, GREEN, TEXT, blank, panels

TABLES = {"A": ([5, 1, 6], 10, BLUE), "B": ([2, 4], 6, GREEN)}  # blocks, tokens, colour
BLOCK_SIZE, NUM_BLOCKS = 4, 8


def draw() -> Figure:
    """Return the figure."""
    figure, [panel] = panels(7.4, 3)
    blank(panel)
    panel.set_xlim(-1.5, 17)
    panel.set_ylim(-0.4, 8.6)
    owners = {block: name for name, (blocks, _, _) in TABLES.items() for block in blocks}
    for block in range(NUM_BLOCKS):
        y = 7.2 - block
        panel.text(9.6, y + 0.4, f"block {block}", ha="right", va="center", fontsize=8)
        for offset in range(BLOCK_SIZE):
            colour, is_filled = TEXT, False
            if block in owners:
                blocks, num_tokens, colour = TABLES[owners[block]]
                is_filled = blocks.index(block) * BLOCK_SIZE + offset < num_tokens
            panel.add_patch(
                Rectangle((10 + offset, y), 0.92, 0.8, fc=colour if is_filled else "none", ec=colour, alpha=0.5)
            )
    for (name, (blocks, num_tokens, colour)), top in zip(TABLES.items(), (6.6, 2.6), strict=True):
        panel.text(-1.4, top + 0.7, f"{name}: {num_tokens} tokens", color=colour)
        for index, block in enumerate(blocks):
            panel.add_patch(Rectangle((1.3 * index, top - 0.7), 1.2, 0.8, fc=colour, alpha=0.3, ec=colour))
            panel.text(1.3 * index + 0.6, top - 0.3, str(block), ha="center", va="center")
            panel.annotate(
                "",
                (8.1, 7.6 - block),
                (1.3 * index + 0.6, top - 0.75),
                arrowprops={"arrowstyle": "->", "color": colour, "alpha": 0.6, "connectionstyle": "arc3,rad=0.12"},
            )
    panel.text(-1.4, 0.2, "block tables", fontsize=9)
    panel.text(14.3, 0.2, "the pool", fontsize=9)
    return figure
