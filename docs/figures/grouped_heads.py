"""Query heads and the KV heads they share, and what a token then costs in the cache."""

from docs.figures.drawing import BLUE, GREEN, ORANGE, box, figure, line, text

NUM_HEADS, NUM_LAYERS, HEAD_DIM = 9, 30, 64  # of the default model, which has 3 KV heads
KINDS = (("MHA", 9, BLUE), ("GQA", 3, GREEN), ("MQA", 1, ORANGE))


def draw() -> str:
    """Return the figure."""
    parts = [text(0, 14, "Query heads (round) and the KV heads they read")]
    for row, (name, num_kv_heads, colour) in enumerate(KINDS):
        top, bottom = 38 + 84 * row, 78 + 84 * row
        group = NUM_HEADS // num_kv_heads
        parts.append(text(0, top + 24, name, is_bold=True))
        for head in range(NUM_HEADS):
            x, at = 54 + 22 * head, 54 + 22 * (head // group * group + (group - 1) / 2)
            parts.append(line([(x, top), (at, bottom)], colour))
            parts.append(f'<circle cx="{x}" cy="{top}" r="6"/>')
            if head % group == 0:
                parts.append(box(at - 7, bottom - 7, 14, 14, colour, 1))
        kv_bytes = 2 * NUM_LAYERS * num_kv_heads * HEAD_DIM * 2
        parts += [text(250, top + 16, f"{kv_bytes:,} bytes"), text(250, top + 34, "a token")]
    return figure(266, parts)
