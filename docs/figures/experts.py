"""Experts that steps of more and more tokens read, each token choosing two of sixteen."""

import torch

from caravan.model.experts import choose_experts
from docs.figures.drawing import BLUE, box, figure, text

NUM_EXPERTS, NUM_CHOSEN = 16, 2
STEP, TOP = 22, 52


def draw() -> str:
    """Return the figure."""
    logits = torch.randn(32, NUM_EXPERTS, generator=torch.Generator().manual_seed(2))
    chosen, _ = choose_experts(logits, NUM_CHOSEN, normalizes_weights=True)
    parts = [text(0, 14, f"{NUM_EXPERTS} experts, and how many tokens of a step each computes")]
    for row, num_tokens in enumerate((1, 4, 32)):
        counts = chosen[:num_tokens].flatten().bincount(minlength=NUM_EXPERTS).tolist()
        top, num_read = TOP + 62 * row, sum(count > 0 for count in counts)
        words = "1 token" if num_tokens == 1 else f"{num_tokens} tokens"
        parts.append(text(0, top - 8, f"{words}: {num_read} of {NUM_EXPERTS} are read", is_bold=True))
        for expert, count in enumerate(counts):
            x = 4 + STEP * expert
            parts.append(box(x, top, STEP - 4, 26, BLUE, 0.22 if count else 0))
            if count:
                parts.append(text(x + STEP / 2 - 2, top + 17.5, f"{count}", "middle"))
    return figure(TOP + 62 * 3 - 28, parts)
