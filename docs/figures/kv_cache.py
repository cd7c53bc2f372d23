"""Which keys and values are computed in each step, and which are read."""

from docs.figures.drawing import BLUE, ORANGE, figure, labelled, text, text_width

WORDS = ["The", "capital", "of", "Italy", "is", "Rome", "."]  # the last two are the model's
PROMPT = 5


def draw() -> str:
    """Return the figure."""
    parts = [text(70, 14, "keys and values, by token")]
    for step in range(3):
        y = 26 + 38 * step
        end = PROMPT + step
        parts.append(text(0, y + 18, "prefill" if step == 0 else f"decode {step}"))
        x = 70.0
        for position, word in enumerate(WORDS[:end]):
            is_new = step == 0 or position == end - 1
            width = text_width(word) + 12
            parts.append(labelled(x, y, width, word, ORANGE if is_new else BLUE))
            x += width + 4
    parts += [
        labelled(70, 148, 24, "", ORANGE, 16),
        text(100, 161, "computed in this step"),
        labelled(70, 172, 24, "", BLUE, 16),
        text(100, 185, "read from the cache"),
    ]
    return figure(194, parts)
