"""The way of one streamed request, from bytes to bytes."""

from matplotlib.figure import Figure

from docs.figures.style import BLUE, GREEN, ORANGE, PURPLE, TEXT, arrow, blank, box, panels

IN = [  # name, notes
    ("read", ["framing, body"]),
    ("check", ["host, key, limits,", "fields"]),
    ("encode", ["template, grammar,", "tokenizer"]),
    ("admit", ["limits,", "forecast"]),
]
STEP = [
    ("commit", ["blocks, ends"]),
    ("run", ["model, sampler"]),
    ("schedule", ["tokens of this step"]),
    ("wait", ["queue"]),
]
OUT = [
    ("receive", ["tokens of", "one choice"]),
    ("decode", ["text, stop strings,", "tool calls"]),
    ("write", ["chunks, events"]),
]
PITCH, WIDTH = 3.9, 3.2


def draw() -> Figure:
    """Return the figure."""
    figure, [panel] = panels(8.6, 4.3)
    blank(panel)
    panel.set_xlim(0, 17.8)
    panel.set_ylim(0, 8.6)
    left = [2.2 + PITCH * index for index in range(4)]
    for index, (name, notes) in enumerate(IN):
        box(panel, (left[index], 6.5), (WIDTH, 1.8), name, PURPLE if name == "admit" else BLUE, notes)
        if index:
            arrow(panel, (left[index] - 0.65, 7.4), (left[index] - 0.05, 7.4))
    for index, (name, notes) in enumerate(STEP):
        box(panel, (left[index], 3.3), (WIDTH, 1.5), name, ORANGE, notes)
        if index:
            arrow(panel, (left[index] - 0.05, 4.05), (left[index] - 0.65, 4.05))
    for index, (name, notes) in enumerate(OUT):
        box(panel, (left[index], 0.1), (WIDTH, 1.8), name, GREEN, notes)
        arrow(panel, (left[index] + WIDTH + 0.05, 1.0), (left[index] + PITCH - 0.05, 1.0))
    middle = [start + WIDTH / 2 for start in left]
    arrow(panel, (middle[3], 6.45), (middle[3], 4.85))
    arrow(panel, (middle[0], 3.25), (middle[0], 1.95))
    loop = {"arrowstyle": "->", "color": TEXT, "connectionstyle": "arc3,rad=-0.12"}
    panel.annotate("", (middle[2], 4.85), (middle[0], 4.85), arrowprops=loop)
    panel.text(middle[1], 5.75, "one step, repeated until the last token", ha="center", va="center", fontsize=8)
    panel.text(left[3], 1.0, "to the client", va="center", fontsize=8.5)
    for y, text in ((7.4, "API\nprocess"), (4.05, "engine\nprocess"), (1.0, "API\nprocess")):
        panel.text(0.1, y, text, va="center", fontsize=8.5)
    return figure
