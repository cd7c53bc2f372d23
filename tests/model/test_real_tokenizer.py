"""The tokenizer of the default model against known ids and its original pipeline."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from tokenizers import Tokenizer as ReferenceTokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Digits
from tokenizers.pre_tokenizers import Sequence as PreTokenizers

from caravan.model.checkpoint.gguf_header import read_gguf_header
from caravan.model.tokenizer.tokenizer import Tokenizer, Unencodable
from tests.model.corpus import corpus
from tests.model.vocabularies import GUARD, TEXTS, any_text, metadata_list


@pytest.mark.real_model
@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("Hello world", [19556, 905]),
        ("a  2", [81, 256, 34]),  # transformers 5 reads the file without its pre-tokenizer: [81, 216, 216, 34]
        ("½", [16738]),
        ("x ٣", [104, 216, 164, 113]),
    ],
)
def test_the_default_model_has_known_ids(real_tokenizer: Tokenizer, text: str, ids: list[int]) -> None:
    assert real_tokenizer.encode(text) == ids


@pytest.mark.real_model
def test_the_default_model_encodes_as_its_original_pipeline(real_model_path: Path, real_tokenizer: Tokenizer) -> None:
    metadata = read_gguf_header(real_model_path).metadata
    tokens, merges = metadata_list(metadata, "tokens"), metadata_list(metadata, "merges")
    ids = {token: i for i, token in enumerate(tokens)}
    reference = ReferenceTokenizer(BPE(vocab=ids, merges=[tuple(merge.split(" ")) for merge in merges]))
    reference.pre_tokenizer = PreTokenizers([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)])
    sources = [text for file in Path(__file__).parent.glob("*.py") for text in file.read_text().splitlines()]
    for text in [*(text for text in TEXTS if "\x00" not in text), *sources]:
        assert real_tokenizer.encode(text) == reference.encode(text).ids
    num_refused = 0
    for text in corpus(2800):
        try:
            token_ids = real_tokenizer.encode(text)
        except Unencodable:  # 21 of the 256 bytes have no token; the reference leaves them out
            num_refused += 1
            assert reference.decode(reference.encode(text).ids) != text
        else:
            assert token_ids == reference.encode(text).ids
            assert real_tokenizer.decode(token_ids) == text
    assert num_refused < 800


@pytest.mark.real_model
@given(text=any_text)
def test_the_default_model_decodes_to_the_text_or_refuses_it(real_tokenizer: Tokenizer, text: str) -> None:
    try:
        ids = real_tokenizer.encode(text)
    except Unencodable as error:
        named = re.search(r"U\+([0-9A-F]+)", str(error))
        assert named
        assert chr(int(named[1], 16)) in text
    else:
        assert real_tokenizer.decode(ids) == text


@pytest.mark.real_model
@pytest.mark.parametrize("character", ["\x04", "\U00040000"])
def test_the_default_model_refuses_what_it_cannot_encode(real_tokenizer: Tokenizer, character: str) -> None:
    with pytest.raises(Unencodable, match=re.escape(f"U+{ord(character):04X}")):
        real_tokenizer.encode(f"é😀{character}")


@pytest.mark.real_model
def test_the_default_model_parses_its_own_turns_only(real_tokenizer: Tokenizer) -> None:
    text = f"<|im_start|>user\n<{GUARD}|im_end|><|im_end|>\n"
    ids = real_tokenizer.encode(text, parse_special=True, guard=GUARD)
    assert [token_id for token_id in ids if real_tokenizer.is_special(token_id)] == [1, 2]
    assert real_tokenizer.decode(ids, skip_special=False) == text.replace(GUARD, "")


@pytest.mark.real_model
def test_the_default_model_ends_a_turn_or_a_document(real_tokenizer: Tokenizer) -> None:
    assert real_tokenizer.eos_token_ids == {0, 2}
    assert real_tokenizer.vocab_size == 49152
    assert real_tokenizer.chat_template
    assert "<|im_start|>" in real_tokenizer.chat_template
