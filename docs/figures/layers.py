"""The layers of the code: each imports only from those below it."""

from matplotlib.figure import Figure

from docs.figures.style import BLUE, GREEN, ORANGE, PURPLE, TEXT, blank, box, panels

ROOMS = {  # folders of server/, from the first that may import to the last, with what they are about
    "operations": "health, metrics, explain, live view, pages",
    "batches": "files and batches: journal, runner, routes",
    "openai": "endpoints, fields, prompts, tools, structured output",
    "http": "framing, bodies, keys, errors, event streams, shutdown",
    "generation": "request context, admission, text, stop strings",
    "observe": "metrics, logs, spans, request records",
    "engine": "client and supervision of the engine process",
    "sandbox": "worker processes: templates, grammars",
}
PACKAGES = [  # name, notes, colour, height
    ("model", ["llama, rope, kv_cache, attention/, sampling/, tokenizer/, checkpoint/, cpu/"], PURPLE, 1.1),
    ("scheduler", ["engine, scheduler, waiting queue, blocks, batch, speculation, grammar, messages"], ORANGE, 1.1),
]


def draw() -> Figure:
    """Return the figure."""
    figure, [panel] = panels(7.6, 5.7)
    blank(panel)
    panel.set_xlim(0, 15.2)
    panel.set_ylim(0, 11.4)
    bottom = 0.1
    for name, notes, colour, height in PACKAGES:
        box(panel, (1.2, bottom), (12.8, height), f"{name}/", colour, notes)
        bottom += height + 0.25
    height = 5.9
    box(panel, (1.2, bottom), (12.8, height), "server/", GREEN, [])
    for row, (name, text) in enumerate(reversed(ROOMS.items())):
        y = bottom + 0.42 + 0.64 * row
        panel.text(1.7, y, f"{name}/", va="center", fontsize=8.5)
        panel.text(4.3, y, text, va="center", fontsize=8)
    bottom += height + 0.25
    box(panel, (1.2, bottom), (6.25, 1.3), "caravan/cli/", BLUE, ["one file per command, bench/"])
    box(panel, (7.75, bottom), (6.25, 1.3), "caravan/offline/", BLUE, ["the engine as a Python class"])
    panel.annotate("", (0.6, 0.2), (0.6, 10.9), arrowprops={"arrowstyle": "->", "color": TEXT})
    panel.text(0.3, 5.3, "imports", rotation=90, ha="center", va="center", fontsize=8)
    return figure
