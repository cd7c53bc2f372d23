"""The layers of the code: each imports only from those below it."""

from docs.figures.drawing import BLUE, GREEN, ORANGE, PURPLE, WIDTH, arrow, box, figure, text, wrapped

ROOMS = {  # folders of server/, from the first that may import to the last, with what they are about
    "operations": "health, metrics, explain, live view, pages",
    "learn": "lessons: traces of the model, simulations",
    "batches": "files and batches: journal, runner, routes",
    "ollama": "Ollama's API: adapters onto openai",
    "messages": "Anthropic's Messages API: adapters onto openai",
    "openai": "endpoints, fields, prompts, tools, structured output",
    "resumption": "responses that outlive connections",
    "http": "framing, bodies, keys, errors, event streams, shutdown",
    "generation": "request context, admission, text, stop strings",
    "observe": "metrics, logs, spans, request records",
    "replicas": "several engines, here or on other machines",
    "engine": "client and supervision of the engine process",
    "sandbox": "worker processes: templates, grammars",
}
SCHEDULER = "engine, scheduler, waiting queue, blocks, batch, speculation, grammar, messages"
MODEL = "llama, rope, kv_cache, attention/, sampling/, tokenizer/, checkpoint/, cpu/, cuda/"
LEFT, NOTES, LINE = 26, 130, 17  # where boxes and notes begin, and the height of a line


def draw() -> str:
    """Return the figure."""
    half = (WIDTH - LEFT - 9) / 2
    parts = []
    for x, name, note in ((LEFT, "caravan/cli/", "one file per command"), (LEFT + half + 8, "caravan/offline/", "")):
        parts += [box(x, 1, half, 46, BLUE), text(x + 8, 20, name, is_bold=True)]
        parts.append(text(x + 8, 37, note or "a Python class"))
    y = 56.0
    rooms, height = _rooms(y + 28)
    parts += [box(LEFT, y, WIDTH - LEFT - 1, height + 30, GREEN, 0.14), text(LEFT + 8, y + 20, "server/", is_bold=True)]
    parts += rooms
    y += height + 38
    for name, notes, colour in (("scheduler/", SCHEDULER, ORANGE), ("model/", MODEL, PURPLE)):
        lines = wrapped(notes, WIDTH - LEFT - 18)
        parts += [
            box(LEFT, y, WIDTH - LEFT - 1, 28 + LINE * len(lines), colour),
            text(LEFT + 8, y + 19, name, is_bold=True),
        ]
        parts += [text(LEFT + 8, y + 19 + LINE * (row + 1), line) for row, line in enumerate(lines)]
        y += 36 + LINE * len(lines)
    parts += [arrow((17, 4), (17, y - 10)), text(11, y / 2 + 24, "imports", turned=True)]
    return figure(y - 6, parts)


def _rooms(y: float) -> tuple[list[str], float]:
    """Return the rows of the folders of server/ from there on, and their height."""
    parts, top = [], y
    for name, notes in ROOMS.items():
        parts.append(text(LEFT + 8, y + 14, f"{name}/", is_bold=True))
        lines = wrapped(notes, WIDTH - NOTES - 24)
        parts += [text(NOTES, y + 14 + LINE * row, line) for row, line in enumerate(lines)]
        y += LINE * len(lines) + 7
    return parts, y - top
