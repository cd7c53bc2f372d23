"""An adapter beside the matrix that it changes, and the rows of a step that it changes."""

from docs.figures.drawing import BLUE, GREEN, ORANGE, arrow, box, figure, labelled, line, text

WIDTH, RANK = 576, 16  # of the default model's queries, and of the adapter
SIDE, TOP = 144.0, 34.0  # of the matrix on the page
ROWS = (("poems", BLUE), ("poems", BLUE), ("", ""), ("code", ORANGE))
PITCH, ROWS_TOP = 32, 250


def draw() -> str:
    """Return the figure."""
    thin, bottom = SIDE * RANK / WIDTH, TOP + SIDE
    change = 2 * RANK * WIDTH
    parts = [
        text(0, 14, f"W of the default model, and rank {RANK}, to scale"),
        box(0, TOP, SIDE, SIDE, GREEN),
        text(SIDE / 2, TOP + 66, "W", "middle", is_bold=True),
        text(SIDE / 2, TOP + 86, f"{WIDTH * WIDTH:,} numbers", "middle"),
        text(160, TOP + 78, "+", "middle", is_bold=True),
        box(190, TOP, thin, SIDE, BLUE, 0.7),
        text(184, TOP + 78, "B", "end", is_bold=True),
        box(210, TOP, SIDE, thin, BLUE, 0.7),
        text(210 + SIDE / 2, TOP + 24, "A", "middle", is_bold=True),
        text(210 + SIDE / 2, TOP + 66, f"{change:,} numbers,", "middle"),
        text(210 + SIDE / 2, TOP + 86, f"{change / WIDTH**2:.1%} of W", "middle"),
        text(0, bottom + 40, "Rows of one step", is_bold=True),
    ]
    height = PITCH * len(ROWS) - 6
    parts += [
        box(96, ROWS_TOP - 18, 76, height, GREEN),
        text(134, ROWS_TOP + height / 2 - 20, "W, once", "middle"),
        text(134, ROWS_TOP + height / 2 - 2, "for all", "middle"),
    ]
    for row, (name, colour) in enumerate(ROWS):
        y = ROWS_TOP + PITCH * row - 5
        parts += [text(0, y + 4.5, f"request {row + 1}"), arrow((68, y), (94, y))]
        if name:
            parts += [line([(172, y), (200, y)]), labelled(200, y - 13, 110, f"+ B A of {name}", colour)]
            parts.append(arrow((310, y), (350, y)))
        else:
            parts.append(arrow((172, y), (350, y)))
    return figure(ROWS_TOP + PITCH * len(ROWS) - 20, parts)
