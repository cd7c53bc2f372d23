"""The way of one streamed request, from bytes to bytes."""

from docs.figures.drawing import BLUE, GREEN, ORANGE, PURPLE, WIDTH, arrow, box, figure, labelled, line, text

STOPS = {  # of each process in turn: names, with what happens there
    "API process": (
        ("read", "framing, body"),
        ("check", "host, key, limits, fields"),
        ("encode", "template, grammar, tokenizer"),
        ("admit", "limits, forecast of the wait"),
    ),
    "engine process": (
        ("wait", "queue"),
        ("schedule", "tokens of this step"),
        ("run", "model, sampler"),
        ("commit", "blocks, ends"),
    ),
    "API process ": (
        ("receive", "tokens of one choice"),
        ("decode", "text, stop strings, tool calls"),
        ("write", "chunks, events, to the client"),
    ),
}
COLOURS = (BLUE, ORANGE, GREEN)
PITCH, LEFT, BOX, NOTES = 40, 64, 82, 154


def draw() -> str:
    """Return the figure."""
    parts, y = [], 1.0
    for (process, stops), colour in zip(STOPS.items(), COLOURS, strict=True):
        height = PITCH * len(stops) + 4
        parts.append(box(0, y, WIDTH - 1, height, colour, 0.1))
        parts.append(
            text(18, y + height / 2 + 7 * len(process.strip()) / 2, process.strip(), is_bold=True, turned=True)
        )
        for row, (name, note) in enumerate(stops):
            top = y + 8 + PITCH * row
            parts.append(labelled(LEFT, top, BOX, name, PURPLE if name == "admit" else colour))
            parts.append(text(NOTES, top + 17.5, note))
            if row or y > 1:
                parts.append(arrow((LEFT + BOX / 2, top - (13 if row else 21)), (LEFT + BOX / 2, top - 1)))
        if process == "engine process":
            parts += _loop(y + 8 + PITCH + 13, y + 8 + 3 * PITCH + 13)
        y += height + 8
    return figure(y - 6, parts)


def _loop(top: float, bottom: float) -> list[str]:
    """Return the way back from the end of a step to the next one."""
    x = LEFT - 16
    words = "each step"
    return [
        line([(LEFT - 1, bottom), (x, bottom), (x, top)]),
        arrow((x, top), (LEFT - 1, top)),
        text(x - 6, (top + bottom) / 2 + 30, words, turned=True),
    ]
