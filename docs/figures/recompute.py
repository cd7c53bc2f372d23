"""What the next token costs with and without a KV cache."""

from matplotlib.figure import Figure

from docs.figures.style import BLUE, ORANGE, TEXT, panels

PROMPT, OUTPUT = 64, 192


def draw() -> Figure:
    """Return the figure."""
    figure, [panel] = panels(6, 3)
    steps = range(1, OUTPUT + 1)
    without = [sum(PROMPT + earlier for earlier in range(step)) for step in steps]
    with_cache = [PROMPT + step - 1 for step in steps]
    panel.plot(steps, without, color=ORANGE, label="without a cache: the whole text, again and again")
    panel.plot(steps, with_cache, color=BLUE, label="with one: each token once")
    panel.set_yscale("log")
    panel.set_xlabel(f"tokens generated after a prompt of {PROMPT}")
    panel.set_ylabel("tokens computed so far")
    panel.legend(labelcolor=TEXT, fontsize=8)
    return figure
