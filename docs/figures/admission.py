"""The forecast of a wait: two places in the batch, two requests in the queue, and one more."""

from caravan.server.generation.wait_forecast import forecast_wait_seconds
from docs.figures.drawing import BLUE, GREEN, ORANGE, box, figure, line, text

RUNNING = (40, 90)  # tokens left
WAITING = ((20, 60), (10, 30))  # prompt, answer
STEP_SECONDS = 0.02


def draw() -> str:
    """Return the figure."""

    def starts(waiting: tuple[tuple[int, int], ...]) -> float:
        return (
            forecast_wait_seconds(RUNNING, waiting, max_running=2, step_seconds=STEP_SECONDS, prefill_seconds=0.0)
            / STEP_SECONDS
        )  # in steps

    bars = [("A", 0.0, RUNNING[0], BLUE), ("B", 0.0, RUNNING[1], BLUE)]
    bars += [(name, starts(WAITING[:place]), WAITING[place][1], ORANGE) for place, name in enumerate(("C", "D"))]
    bars.append(("new", starts(WAITING), 40, GREEN))
    parts = [text(0, 14, "Two requests run at a time; one token a step")]
    for row, (name, start, length, colour) in enumerate(bars):
        y = 26 + 30 * row
        parts.append(text(0, y + 16, name))
        parts.append(line([(36, y + 11), (36 + 1.9 * start, y + 11)], width=0.75, is_dashed=True) if start else "")
        parts.append(box(36 + 1.9 * start, y, 1.9 * length, 22, colour, 0.5))
        if name == "new":
            parts.append(
                text(0, y + 44, f"Forecast: it waits {start:.0f} steps of 20 ms, {start * STEP_SECONDS:.1f} s.")
            )
    return figure(26 + 30 * len(bars) + 30, parts)
