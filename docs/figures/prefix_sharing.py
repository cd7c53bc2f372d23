"""Three requests with one beginning: its blocks are in the pool once."""

from docs.figures.drawing import BLUE, GREEN, ORANGE, PURPLE, figure, labelled, line, text

SHARED = (7, 2, 5, 0)  # blocks of the system prompt
REQUESTS = {"A": ((4,), BLUE), "B": ((1, 8), GREEN), "C": ((6,), ORANGE)}  # blocks of their own


def draw() -> str:
    """Return the figure."""
    parts = [
        text(28 + 44 * 2, 14, "system prompt", "middle", is_bold=True),
        text(214, 14, "its own question", is_bold=True),
    ]
    for row, (name, (own, colour)) in enumerate(REQUESTS.items()):
        y = 26 + 38 * row
        parts.append(text(4, y + 18, name, is_bold=True))
        parts += [labelled(28 + 44 * place, y, 40, str(block), PURPLE) for place, block in enumerate(SHARED)]
        parts += [labelled(214 + 44 * place, y, 40, str(block), colour) for place, block in enumerate(own)]
    bottom = 26 + 38 * len(REQUESTS)
    parts += [
        line([(28, bottom), (28, bottom + 6), (200, bottom + 6), (200, bottom)]),
        text(28, bottom + 26, "All three tables list the same four blocks."),
        text(28, bottom + 44, f"The pool holds {len(SHARED) + 4} blocks instead of {3 * len(SHARED) + 4}."),
    ]
    return figure(bottom + 54, parts)
