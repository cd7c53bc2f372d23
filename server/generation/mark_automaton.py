"""The marks around thoughts as an automaton over a model's tokens; see scheduler/thought_budget.py.

It finds the same thought in tokens as ThoughtSplitter does in their text. A state is the part of a mark that the text
ends with (Knuth, Morris and Pratt, 1977, Fast pattern matching in strings, SIAM J. Comput. 6).
"""

from collections.abc import Callable

from caravan.scheduler.thought_budget import INSIDE, OVER, MarkAutomaton
from caravan.server.generation.thought_splitter import SPACE
from caravan.server.sandbox.thought_marks import ThoughtMarks


def mark_automaton(marks: ThoughtMarks, token_bytes: Callable[[int], bytes], vocab_size: int) -> MarkAutomaton:
    """Return the automaton of a vocabulary; a token without text (b"") changes no state.

    State 1 + n is inside a thought that ends with n bytes of the closing mark. Of the states after those, the first is
    white space, and the others are n bytes of the opening mark.
    """
    opening, closing = (mark.encode() for mark in marks)
    num_inside = len(closing)
    first_before = num_inside + 1
    fallbacks = [_longest_ends(closing, prefix) for prefix in range(num_inside)]

    def step(state: int, byte: int) -> int:
        if state == OVER:
            return OVER
        if state > num_inside:
            num_matched = state - first_before
            if byte == opening[num_matched]:
                return INSIDE if num_matched + 1 == len(opening) else state + 1
            return state if num_matched == 0 and byte in SPACE.encode() else OVER
        num_matched = fallbacks[state - 1].get(byte, 0)
        return OVER if num_matched == num_inside else INSIDE + num_matched

    def after(state: int, text: bytes) -> int:
        for byte in text:
            state = step(state, byte)
        return state

    num_states = first_before + len(opening)
    default = [OVER, *[INSIDE] * num_inside, *[OVER] * len(opening)]
    token_ids, rows = [], bytearray()
    for token_id in range(vocab_size):
        text = token_bytes(token_id)
        if _may_matter(text, opening, closing):
            row = [after(state, text) for state in range(num_states)]
            if row != default:
                token_ids.append(token_id)
                rows += bytes(row)
    return MarkAutomaton(
        num_inside=num_inside, num_states=num_states, token_ids=tuple(token_ids), next_states=bytes(rows)
    )


def _longest_ends(mark: bytes, num_matched: int) -> dict[int, int]:
    """Return the number of matched bytes of a mark after `num_matched` of them and each byte of the mark."""
    found = {}
    for byte in set(mark):
        text = mark[:num_matched] + bytes([byte])
        found[byte] = next((n for n in range(len(text), 0, -1) if mark.startswith(text[-n:])), 0)
    return found


def _may_matter(text: bytes, opening: bytes, closing: bytes) -> bool:
    """Return whether a token can have a part of a mark at one of its ends, or be space; the most have not."""
    if not text or text.isspace():
        return True
    if text[-1:] in (closing[:1], opening[:1]) or closing in text or opening in text:
        return True
    return any(
        (text in mark) or any(text.startswith(mark[n:]) or text.endswith(mark[:n]) for n in range(1, len(mark)))
        for mark in (opening, closing)
    )
