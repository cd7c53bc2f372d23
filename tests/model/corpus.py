"""Strings that tokenizers get wrong: 2,400 of them, the same in every run."""

import random
import unicodedata

EMOJI = ["😀", "👩‍👩‍👧", "👍🏽", "🇫🇷", "🏳️‍🌈", "❤️", "1️⃣", "☕️"]
SPACES = [" ", "  ", "\t", "\n", "\r\n", "\u00a0", "\u3000", "\u200b", "\u2003", " \n ", "\u2581"]
SPECIAL = ["<s>", "</s>", "<unk>", "<|im_start|>", "<|im_end|>", "<0x0A>", "<|eot_id|>", "[INST]", "<|begin_of_text|>"]
WORDS = [
    "hello",
    "World",
    "don't",
    "it's",
    "foo_bar",
    "x=1;",
    "3.14159",
    "2024-01-01",
    "naïve",
    "STRASSE",
    "ﬁ",
    "日本語",
]
BLOCK_STARTS = [
    *range(0x20, 0x3000, 0x60),
    *range(0x3040, 0xD7A3, 0x700),
    *range(0xF900, 0xFFFD, 0xA0),
    0x10348,
    0x20000,
]
ORDINARY_CONTROLS = "".join(chr(code) for code in range(1, 32))


def corpus(count: int = 2400) -> list[str]:
    """Return strings of every Unicode block, emoji sequences, long runs, spaces, controls and special tokens' text."""
    draw = random.Random(7)
    assigned = [
        chr(code)
        for start in BLOCK_STARTS
        for code in range(start, start + 24)
        if unicodedata.category(chr(code)) not in ("Cn", "Cs", "Co")
    ]
    texts = ["", " ", "a", *EMOJI, *SPACES, *SPECIAL, *WORDS, *ORDINARY_CONTROLS, "a" * 500, " " * 300, "😀" * 80]
    texts += ["".join(assigned[start : start + 40]) for start in range(0, len(assigned), 40)]
    while len(texts) < count:
        kinds = [EMOJI, SPACES, SPECIAL, WORDS, assigned, list(ORDINARY_CONTROLS)]
        weights = [1, 3, 1, 4, 4, 0.3]
        length = draw.choice([1, 2, 3, 5, 8, 20])
        texts.append("".join(draw.choice(draw.choices(kinds, weights)[0]) for _ in range(length)))
    return texts
