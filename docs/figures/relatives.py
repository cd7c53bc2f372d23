"""Where the norms of a layer stand: before a part, after it, or both."""

from docs.figures.drawing import BLUE, GREEN, arrow, figure, labelled, line, text

KINDS = (("Llama", True, False), ("OLMo 2", False, True), ("Gemma 2", True, True))  # a norm before, a norm after
SUM, AFTER, PART, BEFORE, START = 52.0, 76.0, 124.0, 172.0, 222.0  # from the top of the page to its bottom


def draw() -> str:
    """Return the figure."""
    parts = []
    for column, (name, has_before, has_after) in enumerate(KINDS):
        stream, middle = 12.0 + 122 * column, 66.0 + 122 * column
        parts += [
            text(middle - 8, 14, name, "middle", is_bold=True),
            line([(stream, START + 14), (stream, SUM + 9)]),
            f'<circle cx="{stream:g}" cy="{SUM:g}" r="9" fill="none" stroke="currentColor"/>',
            text(stream, SUM + 4.5, "+", "middle"),
            arrow((stream, SUM - 9), (stream, SUM - 28)),
        ]
        tops = [top for top, is_there in ((BEFORE, has_before), (PART, True), (AFTER, has_after)) if is_there]
        parts.append(line([(stream, START), (middle, START)]) + arrow((middle, START), (middle, tops[0] + 28)))
        for top, above in zip(tops, [*tops[1:], None], strict=True):
            words, colour = ("part", BLUE) if top == PART else ("norm", GREEN)
            parts.append(labelled(middle - 36, top, 72, words, colour))
            if above is None:
                parts.append(line([(middle, top), (middle, SUM)]) + arrow((middle, SUM), (stream + 10, SUM)))
            else:
                parts.append(arrow((middle, top), (middle, above + 28)))
    parts += [
        text(0, START + 38, "part: attention, then the feed-forward network;"),
        text(0, START + 56, "the line at the left is the residual stream"),
    ]
    return figure(START + 64, parts)
