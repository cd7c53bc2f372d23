"""The weights of a real head: it finds what followed the same word before."""

from caravan.model.trace.attention_weights import attention_scores, masked, softmax
from docs.figures.drawing import BLUE, box, figure, text
from docs.figures.sentence import TOKENS, recording

LAYER, HEAD = 17, 5  # of the default model
CELL, LEFT, TOP = 22.0, 62.0, 66.0


def draw() -> str:
    """Return the figure."""
    attention = recording().attention
    weights = softmax(masked(attention_scores(attention.queries[LAYER], attention.keys[LAYER])))[HEAD]  # [T, T]
    parts = []
    for row, word in enumerate(TOKENS):
        parts.append(text(LEFT - 6, TOP + CELL * row + 16, word.strip(), "end"))
        parts.append(text(LEFT + CELL * row + 16, TOP - 6, word.strip(), turned=True))
        parts += [
            box(LEFT + CELL * column, TOP + CELL * row, CELL - 1, CELL - 1, BLUE, float(weights[row, column]))
            for column in range(row + 1)
        ]
    bottom = TOP + CELL * len(TOKENS)
    for step in range(5):
        parts.append(box(LEFT + 36 + 26 * step, bottom + 10, 26, 14, BLUE, step / 4))
    parts += [text(LEFT + 28, bottom + 22, "0%", "end"), text(LEFT + 172, bottom + 22, "100%")]
    share = float(weights[-1, TOKENS.index(" Paris")])
    parts.append(text(0, bottom + 46, f"The last “is” reads “Paris”, after the first: {share:.0%}"))
    return figure(bottom + 56, parts)
