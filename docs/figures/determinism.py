"""One row of a product: its sums have the same order alone and in a batch."""

from docs.figures.drawing import BLUE, GREEN, ORANGE, figure, labelled, line, text


def draw() -> str:
    """Return the figure."""
    parts = []
    for top, title, others in ((0, "Alone", 0), (102, "Among others", 2)):
        parts.append(text(0, top + 14, title, is_bold=True))
        for row in range(others + 1):
            y = top + 24 + 32 * row
            is_ours = row == others // 2
            colour = BLUE if is_ours else ORANGE
            parts.append(text(0, y + 18, "our request" if is_ours else "another"))
            for tile in range(3):
                parts.append(labelled(86 + 62 * tile, y, 56, f"tile {tile + 1}", colour))
                parts.append(text(82 + 62 * tile, y + 18, "+", "middle") if tile else "")
            if is_ours:
                parts += [text(272, y + 18, "="), labelled(284, y, 74, "same bits", GREEN)]
    parts.append(line([(0, 92), (358, 92)], width=0.5))
    parts += [
        text(0, 246, "Sums inside a tile first, then over the tiles,"),
        text(0, 264, "whatever else is in the step."),
    ]
    return figure(272, parts)
