"""RMSNorm keeps where a vector points; LayerNorm first subtracts its mean."""

import torch

from docs.figures.drawing import BLUE, GREEN, ORANGE, box, figure, line, text

VECTOR = torch.tensor([3.0, 2.2, 4.1, 1.0, 2.6, 3.4, 1.9, 2.8])
ZERO, SCALE = 130.0, 24.0  # where zero is, and pixels of one


def draw() -> str:
    """Return the figure."""
    rms = VECTOR / VECTOR.pow(2).mean().sqrt()
    layer = (VECTOR - VECTOR.mean()) / VECTOR.std(correction=0)
    parts = []
    for column, (name, values, colour) in enumerate(
        (("x", VECTOR, ORANGE), ("RMSNorm(x)", rms, BLUE), ("LayerNorm(x)", layer, GREEN))
    ):
        x = 20 + 118 * column
        parts.append(text(x + 50, 16, name, "middle", is_bold=True))
        parts.append(line([(x, ZERO), (x + 100, ZERO)], width=0.75))
        for index, value in enumerate(values.tolist()):
            top = ZERO - max(value, 0) * SCALE
            parts.append(box(x + 2 + 12.5 * index, top, 9, abs(value) * SCALE, colour, 0.7, is_outlined=False))
        angle = float(torch.cosine_similarity(VECTOR, values, dim=0).clamp(max=1).acos().rad2deg())
        parts.append(text(x + 50, 200, "" if column == 0 else f"{angle:.0f}° from x", "middle"))
    parts += [text(14, ZERO + 4.5 - SCALE * value, str(value), "end") for value in (0, 2, 4)]
    parts.append(text(14, ZERO + 4.5 + SCALE * 2, "−2", "end"))
    return figure(210, parts)
