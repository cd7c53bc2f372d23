"""What no tokenizer can be made of is refused by name."""

import json
import re
import struct
from pathlib import Path
from typing import Any

import pytest

from caravan.model.tokenizer import settings, tiktoken_vocabulary, tokenizer_json
from caravan.model.tokenizer.grammar_tokenizer import grammar_tokenizer
from caravan.model.tokenizer.loader import load_tokenizer
from caravan.model.tokenizer.tokenizer import BrokenTokenizer, UnsupportedTokenizer, tokenizer_from_gguf
from tests.model.vocabularies import gpt2_metadata, llama_metadata, metadata_list, trained_sentencepiece
from tests.support.tokenizer_files import byte_level_json, write_tiktoken


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "bert"}, "'bert'; supported are 'llama' and 'gpt2'"),
        ({"pre": "viking"}, "'viking'; supported are gpt-2, smollm, llama-bpe, qwen2, tekken, gpt-4o, default"),
    ],
)
def test_an_unknown_kind_is_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedTokenizer, match=re.escape(message)):
        tokenizer_from_gguf(gpt2_metadata(**changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": None}, "no tokenizer.ggml.model"),
        ({"model": 3}, "tokenizer.ggml.model is not a string"),
        ({"tokens": None}, "no tokenizer.ggml.tokens"),
        ({"tokens": [1, 2]}, "tokenizer.ggml.tokens has an item of the wrong type"),
        ({"tokens": ["a", "a"]}, "one token twice"),
        ({"tokens": ["a", ""]}, "an empty token"),
        ({"token_type": [1]}, "tokenizer.ggml.token_type has 1 items for"),
        ({"token_type": None}, "no tokenizer.ggml.token_type"),
        ({"pre": None}, "no tokenizer.ggml.pre"),
        ({"merges": None}, "no tokenizer.ggml.merges"),
        ({"merges": ["he"]}, "Merge 0 is 'he'; it must be two tokens"),
        ({"merges": ["h e l"]}, "Merge 0 is 'h e l'; it must be two tokens"),
        ({"merges": ["h e", "x q"]}, "Merge 1 is 'x q'; the vocabulary lacks one of its tokens"),
        ({"bos_token_id": 10**6}, "tokenizer.ggml.bos_token_id is 1000000; it must be a token id"),
        ({"bos_token_id": None, "add_bos_token": True}, "tokenizer.ggml.bos_token_id is missing"),
        ({"add_bos_token": "yes"}, "tokenizer.ggml.add_bos_token is not a boolean"),
    ],
    ids=str,
)
def test_damaged_byte_pair_fields_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BrokenTokenizer, match=re.escape(message)):
        tokenizer_from_gguf(gpt2_metadata(**changes))


def test_an_impossible_token_type_is_refused() -> None:
    types = metadata_list(gpt2_metadata(), "token_type")
    with pytest.raises(BrokenTokenizer, match="a type outside 1..6"):
        tokenizer_from_gguf(gpt2_metadata(token_type=[*types[:-1], 9]))


def test_sentencepiece_fields_without_scores_are_refused(proto: bytes) -> None:
    with pytest.raises(BrokenTokenizer, match="no tokenizer.ggml.scores"):
        tokenizer_from_gguf(llama_metadata(proto, scores=None))


def test_a_vocabulary_that_lacks_a_byte_is_refused(proto: bytes) -> None:
    tokens = ["<0x0B>?" if token == "<0x0B>" else token for token in metadata_list(llama_metadata(proto), "tokens")]
    types = [
        1 if token == "<0x0B>?" else kind
        for token, kind in zip(tokens, metadata_list(llama_metadata(proto), "token_type"), strict=True)
    ]
    with pytest.raises(BrokenTokenizer, match="cannot be read"):
        tokenizer_from_gguf(llama_metadata(proto, tokens=tokens, token_type=types))


@pytest.mark.parametrize("content", [b"", b"not a model", bytes(100)])
def test_a_file_that_is_no_sentencepiece_model_is_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "tokenizer.model"
    file.write_bytes(content)
    with pytest.raises(BrokenTokenizer, match="SentencePiece model"):
        load_tokenizer(file)


def test_a_cut_off_sentencepiece_model_is_refused(tmp_path: Path, proto: bytes) -> None:
    file = tmp_path / "tokenizer.model"
    file.write_bytes(proto[:-5])
    with pytest.raises(BrokenTokenizer, match="cannot be read"):
        load_tokenizer(file)


def test_spaces_written_after_words_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.model"
    file.write_bytes(trained_sentencepiece(treat_whitespace_as_suffix=True))
    with pytest.raises(UnsupportedTokenizer, match="after words"):
        load_tokenizer(file)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"bos_token": 3}, "bos_token is 3; it must be a text"),
        ({"added_tokens_decoder": {"x": {"content": "<s>"}}}, "added_tokens_decoder has 'x' without a content"),
        ({"added_tokens_decoder": {"1": "<s>"}}, "added_tokens_decoder has '1' without a content"),
        ({"added_tokens_decoder": {"1": {"content": "<s>", "special": 1}}}, "a flag of the added token '<s>' is not"),
    ],
)
def test_damaged_fields_of_a_tokenizer_config_are_refused(tmp_path: Path, fields: dict[str, Any], words: str) -> None:
    byte_level_json().save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(fields))
    with pytest.raises(BrokenTokenizer, match=words):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\0" * 4 + b"\0" * 5, "ends in the middle of token 0"),
        (struct.pack("<ifi", 9, 0.0, 99) + b"a", "token 0 states 99 bytes"),
        (struct.pack("<ifi", 9, 0.0, 1) + b"\xff", "token 0 is not UTF-8"),
    ],
)
def test_a_damaged_llama2c_vocabulary_is_refused(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "tokenizer.bin").write_bytes(content)
    with pytest.raises(BrokenTokenizer, match=words):
        load_tokenizer(tmp_path / "tokenizer.bin")


def test_files_of_tokenizers_that_are_too_large_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    byte_level_json().save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "chat_template.jinja").write_text("a" * 100)
    monkeypatch.setattr(settings, "_MAX_TEMPLATE_BYTES", 10)
    with pytest.raises(BrokenTokenizer, match=r"chat_template\.jinja is larger than 10 bytes"):
        load_tokenizer(tmp_path)
    monkeypatch.setattr(tokenizer_json, "MAX_FILE_BYTES", 10)
    (tmp_path / "chat_template.jinja").unlink()
    with pytest.raises(BrokenTokenizer, match=r"tokenizer\.json is larger than 10 bytes"):
        load_tokenizer(tmp_path)
    monkeypatch.setattr(tiktoken_vocabulary, "_MAX_FILE_BYTES", 10)
    write_tiktoken(tmp_path / "tokenizer.model")
    with pytest.raises(BrokenTokenizer, match=r"tokenizer\.model is larger than 10 bytes"):
        load_tokenizer(tmp_path / "tokenizer.model")


def test_a_model_without_an_end_token_cannot_be_constrained(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = tokenizer_from_gguf(gpt2_metadata())
    monkeypatch.setattr(tokenizer, "eos_token_ids", frozenset())
    with pytest.raises(ValueError, match="The model has no end token"):
        grammar_tokenizer(tokenizer)


@pytest.mark.parametrize("name", ["", "vocab.txt"])
def test_a_path_without_a_known_tokenizer_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "vocab.txt").write_text("a")
    with pytest.raises(UnsupportedTokenizer, match="has no tokenizer; supported are"):
        load_tokenizer(tmp_path / name)
