"""What the next tokens cost with and without a KV cache."""

from docs.figures.drawing import BLUE, ORANGE, figure, line, text

PROMPT, OUTPUT = 13, 100  # the sentence of the guide, and an answer
LEFT, BOTTOM, WIDTH, HEIGHT = 50.0, 200.0, 290.0, 170.0


def draw() -> str:
    """Return the figure."""
    without = [sum(PROMPT + earlier for earlier in range(step)) for step in range(1, OUTPUT + 1)]
    with_cache = [PROMPT + step for step in range(OUTPUT)]
    largest = without[-1]

    def curve(counts: list[int], colour: str) -> str:
        return line(
            [(LEFT + WIDTH * step / OUTPUT, BOTTOM - HEIGHT * count / largest) for step, count in enumerate(counts, 1)],
            colour,
            2.5,
        )

    parts = [
        text(0, 14, "Tokens computed so far"),
        line([(LEFT, BOTTOM - HEIGHT), (LEFT, BOTTOM), (LEFT + WIDTH, BOTTOM)], width=0.75),
        curve(without, ORANGE),
        curve(with_cache, BLUE),
        text(LEFT + 92, BOTTOM - 120, f"without a cache: {without[-1]:,}"),
        text(LEFT + 130, BOTTOM - 12, f"with one: {with_cache[-1]}"),
        text(LEFT + WIDTH / 2, BOTTOM + 36, f"tokens generated after a prompt of {PROMPT}", "middle"),
    ]
    parts += [text(LEFT - 6, BOTTOM + 4.5 - HEIGHT * count / largest, f"{count:,}", "end") for count in (0, 2000, 4000)]
    parts += [text(LEFT + WIDTH * at / OUTPUT, BOTTOM + 18, str(at), "middle") for at in (0, 50, 100)]
    return figure(BOTTOM + 44, parts)
