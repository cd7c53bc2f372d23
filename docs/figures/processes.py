"""The processes of a server and what goes between them."""

from docs.figures.drawing import BLUE, GREEN, ORANGE, PURPLE, arrow, box, double_arrow, figure, text

API = (
    "asyncio, no torch",
    "HTTP, keys, limits",
    "validation, prompts, tokenizer",
    "admission",
    "text, events",
    "metrics, log, spans",
)
ENGINE = ("torch, no HTTP", "scheduler: queue, batch", "block manager: KV pool", "model, sampler", "grammar masks")
LINE = 19


def draw() -> str:
    """Return the figure."""
    parts = _process(0, 1, 110, "clients", ("HTTP, streams",), BLUE)
    parts += _process(122, 1, 108, "Prometheus", ("/metrics",), BLUE)
    parts += [double_arrow((55, 52), (55, 90)), arrow((176, 52), (176, 90))]
    parts += _process(0, 92, 222, "API process", API, GREEN)
    parts += _process(262, 112, 97, "workers", ("templates,", "grammar", "checks"), PURPLE)
    parts.append(double_arrow((224, 152), (260, 152)))
    bottom = 92 + 30 + LINE * len(API)
    for x, words, is_down in ((24, ("requests,", "aborts"), True), (110, ("one result", "per step"), False)):
        start, end = (x, bottom + 2), (x, bottom + 70)
        parts.append(arrow(start, end) if is_down else arrow(end, start))
        parts += [text(x + 9, bottom + 32 + 17 * row, line) for row, line in enumerate(words)]
    parts.append(arrow((204, bottom + 70), (204, bottom + 2)))
    parts += [text(213, bottom + 32 + 17 * row, line) for row, line in enumerate(("heartbeats,", "snapshots"))]
    parts += [text(234, bottom + 110 + 17 * row, line) for row, line in enumerate(("msgpack over", "a socket pair"))]
    parts += _process(0, bottom + 72, 222, "engine process", ENGINE, ORANGE)
    return figure(bottom + 72 + 30 + LINE * len(ENGINE) + 2, parts)


def _process(x: float, y: float, width: float, name: str, lines: tuple[str, ...], colour: str) -> list[str]:
    """Return a box with a name and what it does."""
    parts = [box(x, y, width, 30 + LINE * len(lines), colour), text(x + 8, y + 19, name, is_bold=True)]
    return parts + [text(x + 8, y + 38 + LINE * row, line) for row, line in enumerate(lines)]
