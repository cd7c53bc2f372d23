"""The 32 weights of one group, rounded to a grid of 16 numbers."""

import torch

from caravan.model.quantization import GROUP, dequantize, quantize
from docs.figures.drawing import BLUE, ORANGE, figure, line, text

TOP, HEIGHT, LEFT, STEP = 30.0, 180.0, 10.0, 11.0


def draw() -> str:
    """Return the figure."""
    weights = torch.randn(1, GROUP, generator=torch.Generator().manual_seed(5))
    rounded = quantize(weights, bits=4)
    shown = dequantize(rounded)[0].tolist()
    scale, offset = float(rounded.scales), float(rounded.offsets)

    def height_of(value: float) -> float:
        return TOP + HEIGHT - HEIGHT * (value - offset) / (15 * scale)

    parts = [text(0, 14, "A group: 32 weights on a grid of 16 numbers")]
    parts += [
        line([(LEFT, height_of(offset + scale * level)), (356, height_of(offset + scale * level))], width=0.3)
        for level in range(16)
    ]
    for index, (weight, near) in enumerate(zip(weights[0].tolist(), shown, strict=True)):
        x = LEFT + 6 + STEP * index
        parts.append(line([(x, height_of(weight)), (x, height_of(near))], ORANGE, 2))
        parts.append(f'<circle cx="{x:g}" cy="{height_of(near):.4g}" r="3.5" fill="{BLUE}"/>')
        parts.append(f'<circle cx="{x:g}" cy="{height_of(weight):.4g}" r="2" fill="{ORANGE}"/>')
    bottom = TOP + HEIGHT
    parts += [
        f'<circle cx="8" cy="{bottom + 20:g}" r="3" fill="{ORANGE}"/>',
        text(18, bottom + 24.5, "the weight"),
        f'<circle cx="108" cy="{bottom + 20:g}" r="3.5" fill="{BLUE}"/>',
        text(118, bottom + 24.5, "what is stored: 4 bits"),
    ]
    return figure(bottom + 34, parts)
