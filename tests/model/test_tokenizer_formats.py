"""Tokenizers in files of other libraries: equal to their own library, both ways, on strings that are hard."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import tiktoken
import tokenizers
import transformers
from sentencepiece import SentencePieceProcessor
from tokenizers import decoders, models, normalizers, pre_tokenizers

from caravan.model.tokenizer.loader import load_tokenizer
from caravan.model.tokenizer.pre_tokenizer_rules import LLAMA3
from caravan.model.tokenizer.tokenizer import BrokenTokenizer, Unencodable, UnsupportedTokenizer
from caravan.model.tokenizer.vocabulary import TokenType
from tests.model.corpus import corpus
from tests.model.vocabularies import trained_sentencepiece
from tests.support.tokenizer_files import byte_level_json, llama2c_bytes, pieces_json, write, write_tiktoken

TEXTS = corpus()


@pytest.mark.parametrize("normalizer", [None, normalizers.NFC()], ids=["plain", "NFC"])
def test_a_byte_level_tokenizer_json_is_equal_to_its_library(tmp_path: Path, normalizer: Any) -> None:
    theirs = byte_level_json(normalizer=normalizer)
    ours = write(tmp_path, theirs)
    theirs.encode_special_tokens = True
    assert len(TEXTS) >= 2000
    for text in TEXTS:
        ids = theirs.encode(text, add_special_tokens=False).ids
        assert ours.encode(text, add_special_tokens=False) == ids, ascii(text)
        assert ours.decode(ids, skip_special=False) == theirs.decode(ids, skip_special_tokens=False), ascii(text)
        if normalizer is None:
            assert ours.decode(ids, skip_special=False) == text


def test_a_tokenizer_json_of_pieces_is_equal_to_its_library(tmp_path: Path) -> None:
    theirs = pieces_json()
    ours = write(tmp_path, theirs)
    theirs.encode_special_tokens = True
    for text in filter(None, TEXTS):
        ids = theirs.encode(text, add_special_tokens=False).ids
        assert ours.encode(text, add_special_tokens=False) == ids, ascii(text)
        assert ours.decode(ids) == theirs.decode(ids), ascii(text)


def test_the_text_of_a_special_token_is_text_unless_it_is_asked_for(tmp_path: Path) -> None:
    ours = write(tmp_path, byte_level_json())
    text = "<|im_start|>user</s>"
    assert not any(ours.is_special(token_id) for token_id in ours.encode(text))
    parsed = ours.encode(text, parse_special=True)
    assert [parsed[0], parsed[-1]] == [ours.special_tokens["<|im_start|>"], ours.special_tokens["</s>"]]
    assert "<tool>" not in ours.special_tokens
    assert len(ours.encode("<tool>")) == 1


@pytest.mark.parametrize(
    ("rule", "setting", "adds_bos"),
    [(True, None, True), (False, None, False), (True, False, True), (False, True, False), (True, True, True)],
)
def test_the_post_processor_says_whether_bos_comes_first_and_a_contradiction_is_logged(
    tmp_path: Path, rule: bool, setting: bool | None, adds_bos: bool, caplog: pytest.LogCaptureFixture
) -> None:
    settings = {} if setting is None else {"add_bos_token": setting}
    ours = write(tmp_path, byte_level_json(adds_bos=rule), **settings)
    assert (ours.encode("a")[0] == ours.bos_token_id) == adds_bos
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert (theirs("a").input_ids[0] == theirs.bos_token_id) == adds_bos
    assert ("tokenizer_config.json has add_bos_token" in caplog.text) == (setting not in (None, rule))


def test_a_model_without_bos_gets_none(tmp_path: Path) -> None:
    ours = write(tmp_path, byte_level_json(), bos_token=None)
    assert ours.bos_token_id is None
    assert ours.bos_token == ""


def test_every_eos_of_the_folder_ends_an_answer(tmp_path: Path) -> None:
    theirs = byte_level_json()
    user_defined = theirs.token_to_id("<tool>")
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [user_defined, 10**6]}))
    ours = write(tmp_path, theirs, eos_token={"content": "</s>", "lstrip": False})
    assert ours.eos_token == "</s>"
    assert ours.eos_token_ids == {theirs.token_to_id(text) for text in ("</s>", "<|im_end|>", "<tool>")}


def test_special_tokens_may_stand_in_a_file_of_their_own(tmp_path: Path) -> None:
    named = {"bos_token": {"content": "<|im_start|>"}, "eos_token": "<|im_end|>"}
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(named))
    ours = write(tmp_path, byte_level_json(), bos_token=None, eos_token=None)
    assert (ours.bos_token, ours.eos_token) == ("<|im_start|>", "<|im_end|>")


@pytest.mark.parametrize(
    ("settings", "file", "template"),
    [
        ({"chat_template": "A"}, None, "A"),
        ({"chat_template": [{"name": "x", "template": "B"}, {"name": "default", "template": "C"}]}, None, "C"),
        ({"chat_template": "A"}, "D", "D"),
        ({}, None, None),
    ],
)
def test_the_chat_template_is_found(
    tmp_path: Path, settings: Mapping[str, Any], file: str | None, template: str | None
) -> None:
    if file is not None:
        (tmp_path / "chat_template.jinja").write_text(file)
    assert write(tmp_path, byte_level_json(), **settings).chat_template == template


def test_a_character_without_tokens_is_refused_by_name(tmp_path: Path) -> None:
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab={"a": 0, "b": 1}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    ours = write(tmp_path, tokenizer, bos_token=None, eos_token=None)
    assert ours.encode("abba") == [0, 1, 1, 0]
    with pytest.raises(Unencodable, match=r"U\+0063"):
        ours.encode("abc")


def test_a_tokenizer_has_as_many_tokens_as_its_model(tmp_path: Path) -> None:
    ours = write(tmp_path, byte_level_json())
    longer = ours.resized(ours.vocab_size + 10)
    assert longer.vocab_size == ours.vocab_size + 10
    assert longer.token_bytes(ours.vocab_size + 9) == b""
    assert longer.is_special(ours.vocab_size)
    assert longer.encode("hello", parse_special=True) == ours.encode("hello", parse_special=True)
    shorter = ours.resized(ours.vocab_size - 1)
    with pytest.raises(Unencodable):
        shorter.encode("<tool>")
    assert ours.resized(ours.vocab_size) is ours


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"\xff\xfe", b'{"model": 1}', b"[" * 100_000])
def test_a_tokenizer_json_that_is_none_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(BrokenTokenizer, match=r"tokenizer\.json"):
        load_tokenizer(tmp_path)


def test_a_decoder_of_another_kind_is_refused(tmp_path: Path) -> None:
    tokenizer = tokenizers.Tokenizer(models.WordPiece({"a": 0}, unk_token="a"))
    tokenizer.decoder = decoders.WordPiece()
    with pytest.raises(UnsupportedTokenizer, match="WordPiece"):
        write(tmp_path, tokenizer)


def test_added_tokens_beside_a_sentencepiece_model_are_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(trained_sentencepiece())
    assert load_tokenizer(tmp_path).encode("a")[0] == 1
    (tmp_path / "added_tokens.json").write_text("{}")
    with pytest.raises(UnsupportedTokenizer, match="adds tokens"):
        load_tokenizer(tmp_path)


def test_llama_3s_file_is_equal_to_tiktoken(tmp_path: Path) -> None:
    ranks = write_tiktoken(tmp_path / "tokenizer.model")
    ours = load_tokenizer(tmp_path)
    theirs = tiktoken.Encoding("x", pat_str=LLAMA3, mergeable_ranks=ranks, special_tokens={})
    for text in TEXTS:
        ids = theirs.encode_ordinary(text)
        assert ours.encode(text) == [ours.bos_token_id, *ids], ascii(text)
        assert ours.decode(ids) == theirs.decode(ids) == text
    assert ours.vocab_size == len(ranks) + 256
    assert ours.special_tokens["<|begin_of_text|>"] == ours.bos_token_id == len(ranks)
    assert ours.special_tokens["<|eot_id|>"] == len(ranks) + 9
    assert {len(ranks) + 1, len(ranks) + 8, len(ranks) + 9} == ours.eos_token_ids


@pytest.mark.parametrize("broken", ["YQ== 5\n", "YQ== x\n", "YQ== 0\nYQ== 1\n"])
def test_a_broken_tiktoken_file_is_refused(tmp_path: Path, broken: str) -> None:
    (tmp_path / "tokenizer.model").write_text(broken)
    with pytest.raises(BrokenTokenizer, match=r"tokenizer\.model"):
        load_tokenizer(tmp_path)


def test_llama2cs_file_is_equal_to_the_model_it_was_exported_from(tmp_path: Path) -> None:
    theirs = SentencePieceProcessor(model_proto=trained_sentencepiece())
    (tmp_path / "tokenizer.bin").write_bytes(llama2c_bytes(theirs))
    (tmp_path / "tokenizer.model").write_bytes(trained_sentencepiece())
    ours, other = load_tokenizer(tmp_path / "m.bin"), load_tokenizer(tmp_path / "tokenizer.model")
    for text in TEXTS:
        assert ours.encode(text) == other.encode(text) == [1, *theirs.encode(text)], ascii(text)
        assert ours.decode(ours.encode(text)) == theirs.decode(theirs.encode(text)), ascii(text)
    assert ours.bos_token_id == 1
    assert ours.eos_token_ids == {2}


@pytest.mark.parametrize("cut", [0, 3, 7, 100])
def test_a_cut_off_llama2c_file_is_refused(tmp_path: Path, cut: int) -> None:
    content = llama2c_bytes(SentencePieceProcessor(model_proto=trained_sentencepiece()))
    (tmp_path / "tokenizer.bin").write_bytes(content[:cut])
    with pytest.raises(BrokenTokenizer, match=r"tokenizer\.bin"):
        load_tokenizer(tmp_path / "m.bin")


def test_types_of_tokens_are_known(tmp_path: Path) -> None:
    ours = write(tmp_path, pieces_json())
    kinds = {text: ours._vocabulary.types[token_id] for token_id, text in enumerate(ours._vocabulary.texts)}
    assert kinds["<unk>"] is TokenType.UNKNOWN
    assert kinds["<0x0A>"] is TokenType.BYTE
    assert kinds["</s>"] is TokenType.CONTROL
