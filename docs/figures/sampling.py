"""The likeliest words after the sentence, at three temperatures."""

from docs.figures.drawing import BLUE, GREEN, ORANGE, box, figure, text
from docs.figures.sentence import recording, token_text

TEMPERATURES = {0.5: BLUE, 1.0: GREEN, 2.0: ORANGE}
NUM_WORDS = 5


def draw() -> str:
    """Return the figure."""
    logits = recording().logits
    best = logits.topk(NUM_WORDS).indices.tolist()
    parts = [text(0, 14, "Probability of the next word")]
    for column, (temperature, colour) in enumerate(TEMPERATURES.items()):
        x = 74 + 98 * column
        shares = (logits / temperature).softmax(dim=-1)
        parts.append(text(x, 40, f"T = {temperature:g}", is_bold=True))
        for row, token_id in enumerate(best):
            y = 52 + 28 * row
            share = float(shares[token_id])
            width = round(52 * share, 1)
            parts.append(box(x, y, max(width, 1), 18, colour, 0.7, is_outlined=False))
            parts.append(text(x + max(width, 1) + 4, y + 14, f"{share:.0%}"))
            parts.append(text(68, y + 14, token_text(token_id).strip(), "end") if column == 0 else "")
    return figure(52 + 28 * NUM_WORDS, parts)
