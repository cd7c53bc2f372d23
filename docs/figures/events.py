"""From the logits of a step to the bytes on the connection."""

from docs.figures.drawing import BLUE, GREEN, ORANGE, PURPLE, arrow, figure, labelled, text
from docs.figures.sentence import recording, token_text


def draw() -> str:
    """Return the figure."""
    token_id = int(recording().logits.argmax())
    stops = (
        ("logits: one number per token", "engine process", PURPLE),
        (f"token id {token_id}", "sampling", PURPLE),
        (f"SequenceOutput([{token_id}])", "a message", ORANGE),
        (f"“{token_text(token_id)}”", "detokenizer", BLUE),
        ("TextDelta", "stop strings checked", BLUE),
        ('data: {"choices": [{…}]}', "event stream", GREEN),
    )
    parts = []
    for row, (what, who, colour) in enumerate(stops):
        y = 2 + 48 * row
        parts.append(labelled(0, y, 212, what, colour, 30))
        parts.append(text(222, y + 20, who))
        if row:
            parts.append(arrow((106, y - 17), (106, y - 1)))
    return figure(48 * len(stops) - 12, parts)
