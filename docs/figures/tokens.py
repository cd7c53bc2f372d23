"""The sentence as tokens with their ids, and as a turn of a chat."""

from docs.figures.drawing import BLUE, PURPLE, WIDTH, figure, labelled, text, text_width
from docs.figures.sentence import TOKENS, token_ids

TURN = ("<|im_start|>", "user", "\\n", "…", "<|im_end|>", "\\n", "<|im_start|>", "assistant", "\\n")
CONTROL = ("<|im_start|>", "<|im_end|>")


def draw() -> str:
    """Return the figure."""
    parts = [text(0, 14, "Text: pieces of the vocabulary, with their ids", is_bold=True)]
    pairs = [(word.replace(" ", "␣"), str(token_id)) for word, token_id in zip(TOKENS, token_ids(), strict=True)]
    bottom = _flow(parts, pairs, 24)
    parts.append(text(0, bottom + 20, "Chat: the text stands where the dots are", is_bold=True))
    bottom = _flow(parts, [(piece, "") for piece in TURN], bottom + 30)
    return figure(bottom, parts)


def _flow(parts: list[str], pairs: list[tuple[str, str]], top: float) -> float:
    """Draw boxes from left to right, in as many lines as they need; return where the next thing can stand."""
    x = 0.0
    height = 46 if pairs[0][1] else 30
    for word, number in pairs:
        width = max(text_width(word), text_width(number)) + 14
        if x + width > WIDTH:
            x, top = 0.0, top + height
        parts.append(labelled(x, top, width, word, PURPLE if word in CONTROL else BLUE))
        parts.append(text(x + width / 2, top + 40, number, "middle") if number else "")
        x += width + 4
    return top + height
