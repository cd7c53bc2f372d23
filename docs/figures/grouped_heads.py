"""Query heads and the KV heads they share, and what a token then costs in the cache."""

from matplotlib.figure import Figure

from docs.figures.style import BLUE, GREEN, ORANGE, TEXT, blank, panels

NUM_HEADS = 8


def draw() -> Figure:
    """Return the figure."""
    figure, [heads, costs] = panels(8.4, 3, columns=2)
    blank(heads)
    kinds = [("MHA", 8, BLUE), ("GQA", 2, GREEN), ("MQA", 1, ORANGE)]
    for row, (name, num_kv_heads, colour) in enumerate(reversed(kinds)):
        top, bottom = 3 * row + 1.6, 3 * row
        heads.text(-1.3, row * 3 + 0.8, name, va="center", color=colour)
        group = NUM_HEADS // num_kv_heads
        for head in range(NUM_HEADS):
            kv = head // group
            x = kv * group + (group - 1) / 2
            heads.plot([head, x], [top, bottom], color=colour, lw=0.8, alpha=0.7)
            heads.plot(head, top, "o", color=TEXT, ms=6)
            heads.plot(x, bottom, "s", color=colour, ms=8)
    heads.set_xlim(-1.6, 8)
    heads.set_title("query heads (round) and KV heads (square)")
    names = [name for name, _, _ in kinds]
    num_kv_heads_of_7b = [32, 8, 1]  # of a model with 32 query heads
    kib = [2 * 32 * count * 128 * 2 / 1024 for count in num_kv_heads_of_7b]
    bars = costs.bar(names, kib, color=[colour for _, _, colour in kinds])
    costs.bar_label(bars, fmt="%.0f", color=TEXT)
    costs.set_title("KiB per token: 32 layers, 32 heads of 128, bfloat16", fontsize=9)
    return figure
