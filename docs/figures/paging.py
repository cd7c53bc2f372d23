"""Two sequences, their block tables, and the words in the blocks of the pool."""

from docs.figures.drawing import BLUE, GREEN, box, figure, labelled, line, text
from docs.figures.sentence import TOKENS

BLOCK_SIZE, NUM_BLOCKS = 4, 8
SECOND = ("Rome", " is", " old", " and", " large", ".")
TABLES = {"A": ([5, 1, 6, 3], TOKENS, BLUE), "B": ([2, 4], SECOND, GREEN)}  # blocks, tokens, colour


def draw() -> str:
    """Return the figure."""
    parts = [text(0, 14, "Block tables", is_bold=True)]
    for row, (name, (blocks, words, colour)) in enumerate(TABLES.items()):
        y = 24 + 32 * row
        parts.append(text(0, y + 18, f"{name}, {len(words)} tokens"))
        parts += [labelled(96 + 44 * place, y, 40, str(block), colour) for place, block in enumerate(blocks)]
    parts.append(text(0, 112, "The pool", is_bold=True))
    owners = {block: name for name, (blocks, _, _) in TABLES.items() for block in blocks}
    for block in range(NUM_BLOCKS):
        y = 122 + 30 * block
        owner = owners.get(block)
        parts.append(text(0, y + 17, f"block {block}"))
        if owner is None:
            parts += [box(96, y, 262, 25, "currentColor", 0), text(104, y + 17, "free")]
            continue
        blocks, words, colour = TABLES[owner]
        first = BLOCK_SIZE * blocks.index(block)
        parts.append(text(66, y + 17, owner))
        for place in range(BLOCK_SIZE):
            x = 96 + 66 * place
            is_filled = first + place < len(words)
            parts.append(box(x, y, 64, 25, colour, 0.22 if is_filled else 0))
            if is_filled:
                parts.append(text(x + 32, y + 17, words[first + place].strip(), "middle"))
    return figure(122 + 30 * NUM_BLOCKS, [*parts, line([(0, 96), (358, 96)], width=0.5)])
