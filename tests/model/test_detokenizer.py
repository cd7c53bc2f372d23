"""Detokenizer: pieces of characters in, whole characters out."""

from hypothesis import given
from hypothesis import strategies as st

from caravan.model.tokenizer.detokenizer import Detokenizer

SPECIAL = 256
TWO_CHARACTERS = 257


class Bytes:
    """One token for each byte, then a special one and one that ends a character and begins the next."""

    def token_bytes(self, token_id: int) -> bytes:
        return {SPECIAL: b"<|end|>", TWO_CHARACTERS: b"\x80\xf0\x9f"}.get(token_id) or bytes([token_id])

    def is_special(self, token_id: int) -> bool:
        return token_id == SPECIAL


def pushed(token_ids: list[int] | bytes, *, skip_special: bool = True, drops_first_space: bool = False) -> list[str]:
    """Return what each token gave, then what the end gave."""
    detokenizer = Detokenizer(Bytes(), skip_special=skip_special, drops_first_space=drops_first_space)
    return [*map(detokenizer.push, token_ids), detokenizer.flush()]


def test_a_character_appears_with_its_last_byte() -> None:
    assert pushed("é😀".encode()) == ["", "é", "", "", "", "😀", ""]


def test_a_token_may_end_one_character_and_begin_another() -> None:
    assert pushed([*"😀".encode()[:3], TWO_CHARACTERS, *b"\x98\x80"]) == ["", "", "", "😀", "", "😀", ""]


def test_what_cannot_be_completed_is_flushed_as_one_replacement() -> None:
    assert pushed("😀".encode()[:3]) == ["", "", "", "\ufffd"]


def test_a_byte_that_breaks_a_character_off_shows_the_replacement_and_itself() -> None:
    assert pushed(b"\xf0\x9fa") == ["", "", "\ufffda", ""]


def test_a_special_token_is_skipped_even_inside_a_character() -> None:
    assert pushed([0xC3, SPECIAL, 0xA9]) == ["", "", "é", ""]


def test_a_special_token_can_be_shown() -> None:
    assert pushed([ord("a"), SPECIAL], skip_special=False) == ["a", "<|end|>", ""]


def test_a_continuation_keeps_its_first_space() -> None:
    assert "".join(pushed(b" Hello")) == " Hello"


def test_a_whole_text_can_lose_its_first_space_and_no_other() -> None:
    assert "".join(pushed(b"  a b", drops_first_space=True)) == " a b"


def test_a_space_that_is_not_the_first_character_stays_where_one_may_be_lost() -> None:
    assert "".join(pushed(b"a b", drops_first_space=True)) == "a b"


@given(st.binary(), st.booleans())
def test_joined_pushes_are_the_bytes_decoded_at_once(written: bytes, drops_first_space: bool) -> None:
    whole = written.decode("utf-8", "replace")
    expected = whole.removeprefix(" ") if drops_first_space else whole
    assert "".join(pushed(written, drops_first_space=drops_first_space)) == expected


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_no_part_of_a_character_is_shown(text: str) -> None:
    pieces = pushed(text.encode())
    ends = [len(text[:i].encode()) for i in range(1, len(text) + 1)]
    assert [i + 1 for i, piece in enumerate(pieces) if piece] == ends
    assert "".join(pieces) == text
