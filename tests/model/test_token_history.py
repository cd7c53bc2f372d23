"""Which texts a slot of a token history has counted, and what a step brings to count another."""

import numpy as np
import pytest
import torch

from caravan.model.cuda.token_history import CountedTexts, TokenHistory

VOCAB_SIZE = 10
CPU = torch.device("cpu")


def started(texts: CountedTexts, slot: int, text: list[int], num_outputs: int = 0) -> dict[int, int] | None:
    """Return the counts of the tokens with which a slot starts; None if it goes on."""
    slots, places, counts = texts.extend([slot], [text], [num_outputs])
    assert slots.tolist() in ([], [slot])
    found = dict(zip((places - slot * VOCAB_SIZE).tolist(), counts.tolist(), strict=True))
    return found if len(slots) else None


def test_a_text_starts_with_its_counts_and_goes_on_with_tokens_that_are_not_known() -> None:
    texts, text = CountedTexts(VOCAB_SIZE), [4, 4, 5, 6, 5, 5]
    assert started(texts, 3, text, 3) == {4: 1, 5: 5, 6: 2}
    for _ in range(3):
        text.append(-1)
        assert started(texts, 3, text, 4) is None


def test_a_slot_starts_anew_with_another_text_of_the_same_length() -> None:
    texts, text = CountedTexts(VOCAB_SIZE), [4, 5]
    started(texts, 0, text)
    assert started(texts, 0, [7, 7, 8], 1) == {7: 1, 8: 2}
    assert started(texts, 1, [*text, 9]) == {4: 1, 5: 1, 9: 1}


@pytest.mark.parametrize("length", [3, 5])
def test_a_slot_starts_anew_if_its_text_has_another_length_than_the_launched_steps_leave(length: int) -> None:
    """After a step that was not launched, or whose tokens were thrown away."""
    texts, text = CountedTexts(VOCAB_SIZE), [1, 2, 3]
    started(texts, 0, text)
    text[:] = range(length)
    assert started(texts, 0, text) == dict.fromkeys(range(length), 1)


def test_all_slots_start_anew_after_they_were_forgotten() -> None:
    texts, text = CountedTexts(VOCAB_SIZE), [1, 2]
    started(texts, 0, text)
    text.append(3)
    texts.forget()
    assert started(texts, 0, text, 1) == {1: 1, 2: 1, 3: 2}


def test_a_text_does_not_start_with_a_token_that_is_not_known() -> None:
    with pytest.raises(AssertionError, match="not known"):
        started(CountedTexts(VOCAB_SIZE), 0, [1, -1], 1)


def test_slots_that_start_lose_their_old_counts_and_others_keep_theirs() -> None:
    history = TokenHistory(3, VOCAB_SIZE, CPU)
    for slot in range(3):
        history.fill(slot, [9], [9, 9])
    arrays = CountedTexts(VOCAB_SIZE).extend([2, 0], [[1, 1, 5], [4]], [1, 0])
    assert [array.dtype for array in arrays] == [np.int64, np.int64, np.int32]
    history.start(*(torch.from_numpy(array) for array in arrays))
    expected = TokenHistory(3, VOCAB_SIZE, CPU)
    expected.fill(0, [4], [])
    expected.fill(1, [9], [9, 9])
    expected.fill(2, [1, 1], [5])
    assert torch.equal(history.counts, expected.counts)
