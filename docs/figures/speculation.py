"""Draft tokens from the text itself, checked in one step."""

from caravan.scheduler.speculation import PromptLookup
from docs.figures.drawing import BLUE, GREEN, ORANGE, PURPLE, figure, labelled, text, text_width
from docs.figures.sentence import TOKENS

END = 11  # tokens of the sentence that the model has: up to the second "of"
DRAFTS = 3


def draw() -> str:
    """Return the figure."""
    ids = [*map(TOKENS.index, TOKENS)]  # equal words have equal numbers
    lookup = PromptLookup(0)
    lookup.observe(ids[:END])
    drafts = [TOKENS[number] for number in lookup.draft(ids[:END], DRAFTS)]
    is_right = drafts[0] == TOKENS[END]
    parts = [text(0, 14, "The text so far", is_bold=True)]
    _row(parts, 24, [(word, PURPLE if place in (1, 2, 9, 10) else BLUE) for place, word in enumerate(TOKENS[:END])][:8])
    _row(parts, 54, [(word, PURPLE if place in (9, 10) else BLUE) for place, word in enumerate(TOKENS[:END])][8:])
    parts.append(text(0, 104, "Draft: what followed “capital of” before", is_bold=True))
    _row(parts, 114, [(word, ORANGE) for word in drafts])
    parts.append(text(0, 164, "One step checks all of them", is_bold=True))
    _row(parts, 174, [(TOKENS[END], GREEN)])
    verdict = (
        "The first guess was right." if is_right else f"The model says “{TOKENS[END].strip()}”: three guesses wrong,"
    )
    parts += [text(0, 222, verdict), text(0, 240, "one token won, as without drafts.")]
    return figure(250, parts)


def _row(parts: list[str], y: float, words: list[tuple[str, str]]) -> None:
    x = 0.0
    for word, colour in words:
        width = text_width(word.strip()) + 12
        parts.append(labelled(x, y, width, word.strip(), colour))
        x += width + 4
