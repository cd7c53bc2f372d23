"""The guard: text from clients never becomes a special token, and none of it is lost."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caravan.model.tokenizer.literal_search import LiteralSearch
from caravan.server.sandbox.special_tokens import SpecialTokenGuard, all_strings, unused_characters
from tests.support.fakes import BOS, EOS, IM_END, IM_START, byte_tokenizer

SPECIAL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]
GUARD = "\ue000"

pieces_of_special_tokens = st.lists(
    st.sampled_from(["<|", "|>", "im_", "start", "end", "<s", ">", "</", "s", " ", "\n"])
)


@given(pieces_of_special_tokens, pieces_of_special_tokens, st.booleans())
def test_adjacent_texts_do_not_form_a_special_token(first: list[str], second: list[str], is_trimmed: bool) -> None:
    guard = SpecialTokenGuard(LiteralSearch(SPECIAL), GUARD)
    texts = ["".join(first), "".join(second)]
    guarded = [str(guard.apply(text)) for text in texts]
    assert [text.replace(GUARD, "") for text in guarded] == texts
    if is_trimmed:
        guarded = [text.strip() for text in guarded]
        texts = [text.strip() for text in texts]
    token_ids = byte_tokenizer().encode("".join(guarded), parse_special=True, guard=GUARD)
    assert not {BOS, EOS, IM_START, IM_END} & set(token_ids)
    assert bytes(token_ids).decode() == "".join(texts)


def test_all_strings_are_guarded_but_keys_are_not() -> None:
    guarded = SpecialTokenGuard(LiteralSearch(["ab"]), "#").apply(
        {"ab": ["ab", {"x": "cab", "n": 1}], "none": None, "b": True}
    )
    assert guarded == {"ab": ["a#b", {"x": "ca#b", "n": 1}], "none": None, "b": True}


def test_overlapping_special_tokens_are_all_split() -> None:
    guarded = str(SpecialTokenGuard(LiteralSearch(["aba", "bab"]), "#").apply("ababa"))
    assert "aba" not in guarded
    assert "bab" not in guarded
    assert guarded.replace("#", "") == "ababa"


def test_without_special_tokens_a_text_is_unchanged() -> None:
    assert SpecialTokenGuard(LiteralSearch([]), "#").apply("<s> anything") == "<s> anything"


def test_all_strings_are_found_with_their_keys() -> None:
    assert sorted(all_strings({"a": ["b", {"c": "d"}], "e": 1})) == ["a", "b", "c", "d", "e"]


def test_unused_characters_occur_in_no_text() -> None:
    used = "".join(map(chr, range(0xE000, 0xF8FE)))
    assert unused_characters([used], 2) == ["\uf8fe", "\uf8ff"]
    with pytest.raises(ValueError, match="private-use"):
        unused_characters([used, "\uf8ff"], 2)
