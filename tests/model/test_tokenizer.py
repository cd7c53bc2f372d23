"""Tokenizer: special tokens, BOS and EOS, streams and threads."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caravan.model.tokenizer.detokenizer import Detokenizer
from caravan.model.tokenizer.tokenizer import Tokenizer, Unencodable, tokenizer_from_gguf
from tests.model.vocabularies import GUARD, TEXTS, UNMERGED_TEXT, any_text, gpt2_metadata, llama_metadata, metadata_list


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
    tokens = [*metadata_list(gpt2_metadata(), "tokens"), "<|im_end|><|im_end|>"]
    types = [*metadata_list(gpt2_metadata(), "token_type"), 3]
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


def test_a_turn_of_gpt_oss_ends_with_an_answer_or_a_call_but_not_with_a_message() -> None:
    ends = ["<|return|>", "<|call|>", "<|end|>"]
    tokens = [*metadata_list(gpt2_metadata(), "tokens"), *ends]
    types = [*metadata_list(gpt2_metadata(), "token_type"), 3, 3, 3]
    tokenizer = tokenizer_from_gguf(gpt2_metadata(tokens=tokens, token_type=types))
    is_end = [tokenizer.special_tokens[end] in tokenizer.eos_token_ids for end in ends]
    assert is_end == [True, True, False]


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
    tokens = metadata_list(gpt2_metadata(), "tokens")
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
