"""One layer of Llama, from token ids to logits."""

from docs.figures.drawing import BLUE, GREEN, ORANGE, PURPLE, arrow, box, figure, line, text

BOXES = [  # name, note, colour
    ("logits", "[T, vocab_size]", ""),
    ("output head", "Linear, or the embedding again", PURPLE),
    ("RMSNorm", "", GREEN),
    ("+", "", ""),
    ("SwiGLU feed-forward", "down(silu(gate) * up)", ORANGE),
    ("RMSNorm", "", GREEN),
    ("+", "", ""),
    ("attention", "RoPE on Q and K, paged KV cache", BLUE),
    ("RMSNorm", "", GREEN),
    ("token embedding", "[T] to [T, hidden_size]", PURPLE),
    ("token ids", "[T]", ""),
]
PITCH, LEFT, WIDTH = 52.0, 44.0, 226.0


def draw() -> str:
    """Return the figure."""
    middle = LEFT + WIDTH / 2
    parts = []
    for row, (name, note, colour) in enumerate(BOXES):
        y = 2 + PITCH * row
        if name == "+":
            parts.append(f'<circle cx="{middle:g}" cy="{y + 19:g}" r="11" fill="none" stroke="currentColor"/>')
            parts.append(text(middle, y + 23.5, "+", "middle"))
        else:
            if colour:
                parts.append(box(LEFT, y, WIDTH, 40, colour))
            parts.append(text(middle, y + (17 if note else 24), name, "middle", is_bold=True))
            parts.append(text(middle, y + 34, note, "middle") if note else "")
        if row:
            lower = y - (0 if name != "+" else -8)
            parts.append(arrow((middle, lower), (middle, y - PITCH + (42 if BOXES[row - 1][0] != "+" else 31))))
    for start, end in ((8.88, 6), (5.88, 3)):  # the residual stream goes round attention and feed-forward
        low, high = 2 + PITCH * start, 2 + PITCH * end + 19
        parts.append(line([(middle, low), (26, low), (26, high)]) + arrow((26, high), (middle - 12, high)))
        parts.append(text(18, (low + high) / 2 + 26, "residual", turned=True))
    top, bottom = 2 + PITCH * 3, PITCH * 9 - 10
    parts.append(line([(276, top), (284, top), (284, bottom), (276, bottom)]))
    parts += [text(290, (top + bottom) / 2 - 4, "each"), text(290, (top + bottom) / 2 + 14, "layer")]
    return figure(PITCH * len(BOXES), parts)
