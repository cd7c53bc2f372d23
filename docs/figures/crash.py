"""An engine ends in the middle of an answer; another one continues it."""

from docs.figures.drawing import BLUE, GREEN, ORANGE, PURPLE, figure, labelled, line, text


def draw() -> str:
    """Return the figure."""
    parts = [text(0, 14, "Engine 1", is_bold=True), labelled(0, 24, 86, "13 tokens", PURPLE)]
    parts += [
        labelled(90, 24, 46, "Rome", BLUE),
        labelled(140, 24, 22, ".", BLUE),
        text(170, 42, "killed", is_bold=True),
    ]
    parts.append(text(0, 84, "Engine 2", is_bold=True))
    parts += [labelled(170, 94, 60, "starts", ORANGE), labelled(234, 94, 80, "15 tokens", PURPLE)]
    parts.append(labelled(318, 94, 40, "It", BLUE))
    parts.append(line([(165, 20), (165, 176)], width=0.75, is_dashed=True))
    parts.append(text(0, 154, "The client", is_bold=True))
    parts += [
        labelled(90, 164, 46, "Rome", GREEN),
        labelled(140, 164, 22, ".", GREEN),
        labelled(318, 164, 40, "It", GREEN),
    ]
    parts += [
        text(178, 182, "a pause"),
        text(0, 216, "Engine 2 computes the prompt and the tokens so far"),
        text(0, 234, "again, and continues after the last one."),
    ]
    return figure(244, parts)
