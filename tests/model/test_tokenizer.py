"""Tokenizer: both kinds against independent ways of encoding, and what surrounds the text."""

import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sentencepiece import SentencePieceProcessor
from tokenizers import Tokenizer as ReferenceTokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Digits
from tokenizers.pre_tokenizers import Sequence as PreTokenizers

from model.checkpoint.gguf_header import read_gguf_header
from model.detokenizer import Detokenizer
from model.tokenizer import (
    BrokenTokenizer,
    Tokenizer,
    Unencodable,
    UnsupportedTokenizer,
    load_tokenizer,
    tokenizer_from_gguf,
)
from tests.model.vocabularies import (
    UNMERGED_TEXT,
    gpt2_metadata,
    llama_metadata,
    naive_byte_pair_ids,
    trained_sentencepiece,
)

GUARD = "\ue000"
GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2_PATTERN = LLAMA3_PATTERN.replace("{1,3}", "")
PATTERNS = {
    "gpt-2": [GPT2_PATTERN],
    "smollm": [r"\p{N}", GPT2_PATTERN],
    "llama-bpe": [LLAMA3_PATTERN],
    "qwen2": [QWEN2_PATTERN],
    "default": [r"[\p{P}$+<=>^~|]+", GPT2_PATTERN, r"\p{N}+", r"[0-9]{3}"],
}
TEXTS = [
    "hello world",
    "  2",
    " 12345  x",
    "½ and ٣",
    "it's IT'S 'S",
    "日本語 and 한국어",
    "😀👩‍👩‍👧 e\u0301",
    "a\n\n  b\r\n\tc",
    "f(x) == [1, 2]; $100",
    "\x00\x1f\x7f",
]
any_text = st.text(st.characters(exclude_categories=["Cs"]))


@pytest.fixture(scope="module")
def byte_pair() -> Tokenizer:
    return tokenizer_from_gguf(gpt2_metadata())


@pytest.fixture(scope="module")
def proto() -> bytes:
    return trained_sentencepiece()


@pytest.fixture(scope="module")
def sentencepiece(proto: bytes) -> Tokenizer:
    return tokenizer_from_gguf(llama_metadata(proto))


@pytest.fixture(params=["byte_pair", "sentencepiece"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    chosen: Tokenizer = request.getfixturevalue(request.param)
    return chosen


@pytest.fixture(scope="module")
def real_tokenizer(real_model_path: Path) -> Tokenizer:
    return load_tokenizer(real_model_path)


# Byte pairs


@pytest.mark.parametrize("pre", PATTERNS)
@pytest.mark.parametrize("text", TEXTS, ids=ascii)
def test_byte_pairs_equal_the_naive_algorithm(pre: str, text: str) -> None:
    metadata = gpt2_metadata(pre=pre, add_bos_token=False)
    assert tokenizer_from_gguf(metadata).encode(text) == naive_byte_pair_ids(text, metadata, PATTERNS[pre])


@pytest.mark.parametrize("pre", PATTERNS)
@given(text=st.text(alphabet="aehlorw xs'S12½٣é日😀_.!\n\r\t"))
def test_byte_pairs_of_mixed_text_equal_the_naive_algorithm(pre: str, text: str) -> None:
    metadata = gpt2_metadata(pre=pre, add_bos_token=False)
    assert tokenizer_from_gguf(metadata).encode(text) == naive_byte_pair_ids(text, metadata, PATTERNS[pre])


@given(text=any_text)
def test_text_in_byte_pairs_decodes_to_itself(byte_pair: Tokenizer, text: str) -> None:
    assert byte_pair.decode(byte_pair.encode(text)) == text


def test_smollm_takes_both_spaces_before_a_digit_as_one_piece() -> None:
    tokens = gpt2_metadata()["tokenizer.ggml.tokens"]
    assert isinstance(tokens, list)
    ids = {pre: tokenizer_from_gguf(gpt2_metadata(pre=pre)).encode("  2") for pre in ("smollm", "gpt-2")}
    assert [tokens[i] for i in ids["smollm"]] == ["ĠĠ", "2"]
    assert [tokens[i] for i in ids["gpt-2"]] == ["Ġ", "Ġ2"]


def test_llama_3_takes_a_whole_piece_that_no_merge_makes() -> None:
    metadata = gpt2_metadata(pre="llama-bpe", add_bos_token=False)
    tokens = metadata["tokenizer.ggml.tokens"]
    assert isinstance(tokens, list)
    assert tokenizer_from_gguf(metadata).encode(UNMERGED_TEXT) == [tokens.index(UNMERGED_TEXT)]
    assert len(tokenizer_from_gguf(gpt2_metadata()).encode(UNMERGED_TEXT)) == len(UNMERGED_TEXT)


def test_the_longest_user_defined_token_is_matched_in_ordinary_text(byte_pair: Tokenizer) -> None:
    ids = byte_pair.encode("hello<tool>s<tool>")
    assert [byte_pair.token_bytes(i) for i in ids] == [b"hello", b"<tool>s", b"<tool>"]
    assert not any(byte_pair.is_special(i) for i in ids)


def test_a_user_defined_token_that_looks_like_control_is_control() -> None:
    tokens = [*_list(gpt2_metadata(), "tokens"), "<|tool_call|>"]
    types = [*_list(gpt2_metadata(), "token_type"), 4]
    tokenizer = tokenizer_from_gguf(gpt2_metadata(tokens=tokens, token_type=types))
    assert tokenizer.special_tokens["<|tool_call|>"] == len(tokens) - 1
    assert len(tokens) - 1 not in tokenizer.encode("<|tool_call|>")


@pytest.mark.parametrize("character", ["\x04", "\U00040000", "é"])
def test_a_character_without_tokens_is_refused_by_name(character: str) -> None:
    tokenizer = tokenizer_from_gguf(gpt2_metadata(missing_bytes=b"\x04\xf1\xa9"))
    with pytest.raises(Unencodable, match=re.escape(f"no token for U+{ord(character):04X}.")):
        tokenizer.encode(f"日本 {character} 日本")


def test_token_bytes_that_are_no_byte_symbols_are_the_text_itself() -> None:
    tokens = [*_list(gpt2_metadata(), "tokens"), "日"]
    types = [*_list(gpt2_metadata(), "token_type"), 1]
    tokenizer = tokenizer_from_gguf(gpt2_metadata(tokens=tokens, token_type=types))
    assert tokenizer.token_bytes(len(tokens) - 1) == "日".encode()


# SentencePiece


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
    for text in ["", " ", *TEXTS, "  the  fox ", "a<tool> b", "<|im_end|>"]:
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
    tokens, scores = _list(metadata, "tokens"), _list(metadata, "scores")
    tokens, types = [*tokens, "qz"], [*_list(metadata, "token_type"), 1]
    tokenizer = tokenizer_from_gguf(llama_metadata(proto, tokens=tokens, token_type=types, scores=[*scores, -1e9]))
    assert tokenizer.encode("qz")[-1] == len(tokens) - 1


def test_a_vocabulary_without_bytes_refuses_what_it_does_not_know() -> None:
    proto = trained_sentencepiece(byte_fallback=False, vocab_size=100)
    tokenizer = tokenizer_from_gguf(llama_metadata(proto))
    with pytest.raises(Unencodable, match=r"no token for U\+65E5\."):
        tokenizer.encode("the 日本")


def test_a_second_unknown_token_is_unused(proto: bytes) -> None:
    tokens = [*_list(llama_metadata(proto), "tokens"), "<pad>"]
    scores = [*_list(llama_metadata(proto), "scores"), 0.0]
    types = [*_list(llama_metadata(proto), "token_type"), 2]
    tokenizer = tokenizer_from_gguf(llama_metadata(proto, tokens=tokens, scores=scores, token_type=types))
    assert tokenizer.is_special(len(tokens) - 1)


def test_byte_tokens_write_their_byte(sentencepiece: Tokenizer) -> None:
    ids = sentencepiece.encode("\u0416", add_special_tokens=False)
    assert b"".join(map(sentencepiece.token_bytes, ids)) == b" \xd0\x96"


# Special tokens


def test_special_text_in_ordinary_text_stays_ordinary(tokenizer: Tokenizer) -> None:
    for text in tokenizer.special_tokens:
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert not any(map(tokenizer.is_special, ids))
        assert tokenizer.decode(ids) == text


def test_special_text_is_parsed_when_asked_for(byte_pair: Tokenizer) -> None:
    ids = byte_pair.encode("<|im_start|>hello<|im_end|>", parse_special=True)
    assert ids == [1, *byte_pair.encode("hello"), 2]


def test_special_text_can_be_decoded(byte_pair: Tokenizer) -> None:
    text = "<|im_start|>hello<|im_end|>"
    ids = byte_pair.encode(text, parse_special=True)
    assert byte_pair.decode(ids, skip_special=False) == text
    assert byte_pair.decode(ids) == "hello"


def test_the_longest_special_text_is_matched_first() -> None:
    tokens = [*_list(gpt2_metadata(), "tokens"), "<|im_end|><|im_end|>"]
    types = [*_list(gpt2_metadata(), "token_type"), 3]
    tokenizer = tokenizer_from_gguf(gpt2_metadata(tokens=tokens, token_type=types))
    assert tokenizer.encode("<|im_end|>" * 3, parse_special=True) == [len(tokens) - 1, 2]


def test_guarded_text_is_ordinary_and_the_guard_leaves_no_trace(tokenizer: Tokenizer) -> None:
    special = next(iter(tokenizer.special_tokens))
    guarded = f"the {special[0]}{GUARD}{special[1:]} fox{special}"
    ids = tokenizer.encode(guarded, parse_special=True, guard=GUARD, add_special_tokens=False)
    ordinary = tokenizer.encode(f"the {special} fox", add_special_tokens=False)
    assert ids == [*ordinary, tokenizer.special_tokens[special]]


def test_a_guard_is_removed_where_nothing_is_parsed(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode(f"he{GUARD}llo", guard=GUARD) == tokenizer.encode("hello")


def test_a_guard_alone_has_no_tokens(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode(GUARD, guard=GUARD, add_special_tokens=False, parse_special=True) == []


def test_half_a_surrogate_pair_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(Unencodable, match=r"U\+D83D"):
        tokenizer.encode("a\ud83d")


# BOS and EOS


def test_bos_stands_first_once(sentencepiece: Tokenizer) -> None:
    once = sentencepiece.encode("hello")
    assert once[0] == sentencepiece.bos_token_id == 1
    assert sentencepiece.encode("<s>hello", parse_special=True) == once
    assert sentencepiece.encode("hello", add_special_tokens=False) == once[1:]


def test_bos_text_that_is_not_parsed_does_not_stand_for_bos(sentencepiece: Tokenizer) -> None:
    ids = sentencepiece.encode("<s>hello")
    assert ids.count(1) == 1
    assert sentencepiece.decode(ids) == "<s>hello"


@pytest.mark.parametrize(("pre", "adds_bos"), [("gpt-2", False), ("smollm", False), ("llama-bpe", True)])
def test_byte_pair_models_add_bos_as_llama_cpp_does(pre: str, adds_bos: bool) -> None:
    assert (tokenizer_from_gguf(gpt2_metadata(pre=pre)).encode("hello")[0] == 1) == adds_bos


def test_the_file_decides_whether_bos_is_added(proto: bytes) -> None:
    assert tokenizer_from_gguf(gpt2_metadata(add_bos_token=True)).encode("hello")[0] == 1
    assert tokenizer_from_gguf(llama_metadata(proto, add_bos_token=False)).encode("hello")[0] != 1


def test_every_end_of_turn_among_control_tokens_is_eos(byte_pair: Tokenizer) -> None:
    assert byte_pair.eos_token_ids == {0, 2}  # <|endoftext|>, <|im_end|>
    assert byte_pair.eos_token == "<|im_end|>"
    assert byte_pair.bos_token == "<|im_start|>"


def test_the_files_own_end_of_turn_is_eos_and_control() -> None:
    tokens = _list(gpt2_metadata(), "tokens")
    eot = tokens.index(UNMERGED_TEXT)
    tokenizer = tokenizer_from_gguf(gpt2_metadata(eot_token_id=eot))
    assert eot in tokenizer.eos_token_ids
    assert tokenizer.is_special(eot)


def test_a_model_may_have_neither_bos_nor_eos() -> None:
    tokenizer = tokenizer_from_gguf(gpt2_metadata(bos_token_id=None, eos_token_id=None))
    assert tokenizer.bos_token_id is None
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("", "")


def test_the_chat_template_comes_from_the_file() -> None:
    assert tokenizer_from_gguf(gpt2_metadata()).chat_template is None
    metadata = gpt2_metadata() | {"tokenizer.chat_template": "{{ messages }}"}
    assert tokenizer_from_gguf(metadata).chat_template == "{{ messages }}"


# Streams and threads


@given(text=any_text, kind=st.sampled_from(["byte_pair", "sentencepiece"]))
def test_a_streamed_text_is_the_whole_text(
    byte_pair: Tokenizer, sentencepiece: Tokenizer, text: str, kind: str
) -> None:
    tokenizer = byte_pair if kind == "byte_pair" else sentencepiece
    ids = tokenizer.encode(text)
    detokenizer = Detokenizer(tokenizer, drops_first_space=kind == "sentencepiece")
    pieces = [*map(detokenizer.push, ids), detokenizer.flush()]
    assert "".join(pieces) == tokenizer.decode(ids)
    assert pieces[-1] == ""
    assert sum(piece.count("\ufffd") for piece in pieces) == text.count("\ufffd")


def test_threads_encode_at_the_same_time(tokenizer: Tokenizer) -> None:
    texts = [f"{text} {i}" for i in range(50) for text in TEXTS]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(tokenizer.encode, texts)) == list(map(tokenizer.encode, texts))


# Refusals


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "bert"}, "'bert'; supported are 'llama' and 'gpt2'"),
        ({"pre": "tekken"}, "'tekken'; supported are gpt-2, smollm, llama-bpe, qwen2, default"),
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
    types = _list(gpt2_metadata(), "token_type")
    with pytest.raises(BrokenTokenizer, match="a type outside 1..6"):
        tokenizer_from_gguf(gpt2_metadata(token_type=[*types[:-1], 9]))


def test_sentencepiece_fields_without_scores_are_refused(proto: bytes) -> None:
    with pytest.raises(BrokenTokenizer, match="no tokenizer.ggml.scores"):
        tokenizer_from_gguf(llama_metadata(proto, scores=None))


def test_a_vocabulary_that_lacks_a_byte_is_refused(proto: bytes) -> None:
    tokens = ["<0x0B>?" if token == "<0x0B>" else token for token in _list(llama_metadata(proto), "tokens")]
    types = [
        1 if token == "<0x0B>?" else kind
        for token, kind in zip(tokens, _list(llama_metadata(proto), "token_type"), strict=True)
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


@pytest.mark.parametrize("name", ["", "tokenizer.json"])
def test_a_path_without_a_known_tokenizer_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UnsupportedTokenizer, match="has no tokenizer; supported are"):
        load_tokenizer(tmp_path / name)


# The default model


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
    tokens, merges = _list(metadata, "tokens"), _list(metadata, "merges")
    ids = {token: i for i, token in enumerate(tokens)}
    reference = ReferenceTokenizer(BPE(vocab=ids, merges=[tuple(merge.split(" ")) for merge in merges]))
    reference.pre_tokenizer = PreTokenizers([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)])
    sources = [text for file in Path(__file__).parent.glob("*.py") for text in file.read_text().splitlines()]
    for text in [*(text for text in TEXTS if "\x00" not in text), *sources]:
        assert real_tokenizer.encode(text) == reference.encode(text).ids


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


def _list(metadata: Mapping[str, object], name: str) -> list[Any]:
    value = metadata[f"tokenizer.ggml.{name}"]
    assert isinstance(value, list)
    return value
