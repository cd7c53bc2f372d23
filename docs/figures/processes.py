"""The processes of a server and what goes between them."""

from matplotlib.figure import Figure

from docs.figures.style import BLUE, GREEN, ORANGE, PURPLE, TEXT, arrow, blank, box, panels

API = ["HTTP, keys, limits", "validation, prompts, tokenizer", "admission", "text, events", "metrics, log, spans"]
ENGINE = ["scheduler: queue, batch", "block manager: KV pool", "model, sampler", "grammar masks"]


def draw() -> Figure:
    """Return the figure."""
    figure, [panel] = panels(8.6, 3.9)
    blank(panel)
    panel.set_xlim(0, 17.2)
    panel.set_ylim(0, 7.8)
    box(panel, (0.1, 4.4), (2.4, 1.5), "clients", BLUE, ["HTTP, streams"])
    box(panel, (0.1, 1.9), (2.4, 1.5), "Prometheus", TEXT, ["/metrics"])
    box(panel, (4.2, 1.7), (4.6, 5.0), "API process", GREEN, API)
    box(panel, (12.4, 1.7), (4.6, 5.0), "engine process", ORANGE, ENGINE)
    box(panel, (4.2, 0.1), (4.6, 1.0), "worker processes", PURPLE, ["chat templates, grammar checks"])
    arrow(panel, (2.6, 5.3), (4.1, 5.3))
    arrow(panel, (4.1, 4.9), (2.6, 4.9))
    arrow(panel, (2.6, 2.65), (4.1, 2.65))
    arrow(panel, (6.2, 1.65), (6.2, 1.15))
    arrow(panel, (6.8, 1.15), (6.8, 1.65))
    arrow(panel, (8.9, 5.4), (12.3, 5.4))
    panel.text(10.6, 5.55, "requests, aborts", ha="center", fontsize=8)
    arrow(panel, (12.3, 3.9), (8.9, 3.9))
    panel.text(10.6, 4.05, "one result per step", ha="center", fontsize=8)
    arrow(panel, (12.3, 2.6), (8.9, 2.6))
    panel.text(10.6, 2.75, "heartbeats, snapshots", ha="center", fontsize=8)
    panel.text(10.6, 1.75, "msgpack over\na socket pair", ha="center", fontsize=7.5)
    panel.text(6.5, 7.1, "asyncio, no torch", ha="center", fontsize=8)
    panel.text(14.7, 7.1, "torch, no HTTP", ha="center", fontsize=8)
    return figure
