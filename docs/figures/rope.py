"""RoPE: each pair of dimensions is the hand of a clock, the first one fast, later ones slower."""

import math

from docs.figures.drawing import BLUE, GREEN, ORANGE, figure, line, text
from docs.figures.sentence import TOKENS

HEAD_DIM, THETA = 64, 100_000.0  # of the default model
PAIRS = {0: BLUE, 4: ORANGE, 10: GREEN}
NUM_HANDS, LAST = 4, 40  # positions on the clocks and on the curves
RADIUS, TOP, HEIGHT = 38.0, 210.0, 60.0


def angle(pair: int, position: float) -> float:
    """Return by how much a pair is rotated at a position. Source: arXiv:2104.09864, equation 15."""
    return position * math.pow(THETA, -2 * pair / HEAD_DIM)


def draw() -> str:
    """Return the figure."""
    parts = [text(0, 14, "Hands at positions 0 to 3: " + ", ".join(word.strip() for word in TOKENS[:NUM_HANDS]))]
    for column, (pair, colour) in enumerate(PAIRS.items()):
        x, y = 60 + 120 * column, 78
        parts.append(f'<circle cx="{x}" cy="{y}" r="{RADIUS:g}" fill="none" stroke="currentColor" stroke-width="0.5"/>')
        for position in range(NUM_HANDS):
            turn = angle(pair, position)
            end = (x + RADIUS * math.cos(turn), y - RADIUS * math.sin(turn))
            parts.append(line([(x, y), end], colour, 2))
            if pair == 0 or position in (0, NUM_HANDS - 1):
                reach = RADIUS + 10
                at = (x + reach * math.cos(turn), y + 4.5 - reach * math.sin(turn))
                parts.append(text(*at, str(position), "middle") if pair < 10 or not position else "")
        parts.append(text(x, 146, f"pair {pair}", "middle", is_bold=True))
    parts.append(text(0, 176, "Cosine of the angle, by position"))
    middle = TOP + HEIGHT
    parts.append(line([(20, middle), (290, middle)], width=0.5))
    parts += [text(14, TOP + 4.5, "1", "end"), text(14, middle + 4.5, "0", "end")]
    parts.append(text(16, TOP + 2 * HEIGHT + 4.5, "−1", "end"))
    for pair, colour in PAIRS.items():
        steps = [LAST * step / 400 for step in range(401)]
        parts.append(
            line([(20 + 270 * at / LAST, middle - HEIGHT * math.cos(angle(pair, at))) for at in steps], colour, 2)
        )
        end_y = middle - HEIGHT * math.cos(angle(pair, LAST))
        parts.append(text(296, end_y + 4.5, f"pair {pair}"))
    parts += [text(20 + 270 * at / LAST, TOP + 2 * HEIGHT + 24, str(at), "middle") for at in (0, 10, 20, 30, LAST)]
    return figure(TOP + 2 * HEIGHT + 32, parts)
