"""A file of Llama 3's kind that lacks bytes: texts with them are refused, and special tokens are still parsed."""

import base64
from pathlib import Path

import pytest

from caravan.model.tokenizer.loader import load_tokenizer
from caravan.model.tokenizer.tokenizer import Tokenizer, Unencodable


@pytest.fixture
def ascii_only(tmp_path: Path) -> Tokenizer:
    lines = [f"{base64.b64encode(bytes([byte])).decode()} {byte}" for byte in range(128)]
    (tmp_path / "tokenizer.model").write_text("\n".join(lines))
    return load_tokenizer(tmp_path / "tokenizer.model")


def test_a_character_without_tokens_is_named(ascii_only: Tokenizer) -> None:
    assert ascii_only.encode("hi", add_special_tokens=False) == [*b"hi"]
    with pytest.raises(Unencodable, match=r"U\+00E9"):
        ascii_only.encode("hié")


def test_special_tokens_are_parsed_where_that_is_asked_for(ascii_only: Tokenizer) -> None:
    text = "a<|eot_id|>b"
    end = ascii_only.special_tokens["<|eot_id|>"]
    assert ascii_only.encode(text, add_special_tokens=False, parse_special=True) == [*b"a", end, *b"b"]
    assert ascii_only.encode(text, add_special_tokens=False) == [*text.encode()]
