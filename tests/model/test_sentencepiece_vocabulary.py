"""SentencePiece vocabularies, out of a GGUF and out of a tokenizer.model."""

from pathlib import Path

import pytest
from hypothesis import given
from sentencepiece import SentencePieceProcessor

from caravan.model.tokenizer.detokenizer import Detokenizer
from caravan.model.tokenizer.loader import load_tokenizer
from caravan.model.tokenizer.tokenizer import Tokenizer, Unencodable, tokenizer_from_gguf
from tests.model.corpus import corpus
from tests.model.vocabularies import TEXTS, any_text, llama_metadata, metadata_list, trained_sentencepiece


@pytest.mark.parametrize("add_dummy_prefix", [True, False])
@pytest.mark.parametrize("remove_extra_whitespaces", [True, False])
def test_a_tokenizer_model_and_its_gguf_fields_give_the_same_ids(
    tmp_path: Path, add_dummy_prefix: bool, remove_extra_whitespaces: bool
) -> None:
    proto = trained_sentencepiece(
        add_dummy_prefix=add_dummy_prefix,
        remove_extra_whitespaces=remove_extra_whitespaces,
        user_defined_symbols=["<tool>"],
        control_symbols=["<|im_end|>"],
    )
    (tmp_path / "tokenizer.model").write_bytes(proto)
    metadata = llama_metadata(
        proto,
        user_defined=["<tool>"],
        add_space_prefix=add_dummy_prefix,
        remove_extra_whitespaces=remove_extra_whitespaces,
    )
    from_file, from_fields = load_tokenizer(tmp_path), tokenizer_from_gguf(metadata)
    library = SentencePieceProcessor(model_proto=proto)
    # A model that removes extra spaces also drops a literal space sign at the start, when it decodes; we keep it.
    texts = [text for text in corpus() if not (remove_extra_whitespaces and text.lstrip().startswith("\u2581"))]
    for text in ["", " ", *TEXTS, *texts, "  the  fox ", "a<tool> b", "<|im_end|>"]:
        ids = from_file.encode(text)
        assert ids == from_fields.encode(text) == [library.bos_id(), *library.encode(text)]
        assert from_file.decode(ids) == from_fields.decode(ids) == library.decode(library.encode(text))
    assert from_file.special_tokens == from_fields.special_tokens
    assert from_file.eos_token_ids == from_fields.eos_token_ids


@given(text=any_text)
def test_text_in_pieces_decodes_to_itself_with_spaces_for_the_space_sign(sentencepiece: Tokenizer, text: str) -> None:
    assert sentencepiece.decode(sentencepiece.encode(text)) == text.replace("\u2581", " ")


def test_decoding_drops_only_the_space_that_encoding_put_first(sentencepiece: Tokenizer) -> None:
    assert sentencepiece.decode(sentencepiece.encode("  two")) == "  two"


def test_a_continuation_keeps_the_space_its_first_piece_begins_with(sentencepiece: Tokenizer) -> None:
    ids = sentencepiece.encode("the fox", add_special_tokens=False)
    detokenizer = Detokenizer(sentencepiece)
    assert "".join(map(detokenizer.push, ids)) == " the fox"


def test_without_a_space_prefix_a_first_space_is_the_texts_own() -> None:
    tokenizer = tokenizer_from_gguf(llama_metadata(trained_sentencepiece(), add_space_prefix=False))
    assert tokenizer.decode(tokenizer.encode(" the")) == " the"
    assert tokenizer.decode(tokenizer.encode("the")) == "the"


def test_an_empty_text_has_no_tokens_but_bos(sentencepiece: Tokenizer) -> None:
    assert sentencepiece.encode("") == [sentencepiece.bos_token_id]
    assert sentencepiece.encode("", add_special_tokens=False) == []


def test_pieces_with_the_lowest_score_still_merge() -> None:
    proto = trained_sentencepiece()
    metadata = llama_metadata(proto)
    tokens, scores = metadata_list(metadata, "tokens"), metadata_list(metadata, "scores")
    tokens, types = [*tokens, "qz"], [*metadata_list(metadata, "token_type"), 1]
    tokenizer = tokenizer_from_gguf(llama_metadata(proto, tokens=tokens, token_type=types, scores=[*scores, -1e9]))
    assert tokenizer.encode("qz")[-1] == len(tokens) - 1


def test_a_vocabulary_without_bytes_refuses_what_it_does_not_know() -> None:
    proto = trained_sentencepiece(byte_fallback=False, vocab_size=100)
    tokenizer = tokenizer_from_gguf(llama_metadata(proto))
    with pytest.raises(Unencodable, match=r"no token for U\+65E5\."):
        tokenizer.encode("the 日本")


def test_a_second_unknown_token_is_unused(proto: bytes) -> None:
    tokens = [*metadata_list(llama_metadata(proto), "tokens"), "<pad>"]
    scores = [*metadata_list(llama_metadata(proto), "scores"), 0.0]
    types = [*metadata_list(llama_metadata(proto), "token_type"), 2]
    tokenizer = tokenizer_from_gguf(llama_metadata(proto, tokens=tokens, scores=scores, token_type=types))
    assert tokenizer.is_special(len(tokens) - 1)


def test_byte_tokens_write_their_byte(sentencepiece: Tokenizer) -> None:
    ids = sentencepiece.encode("\u0416", add_special_tokens=False)
    assert b"".join(map(sentencepiece.token_bytes, ids)) == b" \xd0\x96"
