"""Byte pairs against the naive algorithm, with the pre-tokenizer of each model."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caravan.model.tokenizer.pre_tokenizer_rules import pre_tokenizer_rules
from caravan.model.tokenizer.tokenizer import Tokenizer, Unencodable, tokenizer_from_gguf
from tests.model.vocabularies import TEXTS, UNMERGED_TEXT, any_text, gpt2_metadata, metadata_list, naive_byte_pair_ids

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
    tokens = [*metadata_list(gpt2_metadata(), "tokens"), "<|tool_call|>"]
    types = [*metadata_list(gpt2_metadata(), "token_type"), 4]
    tokenizer = tokenizer_from_gguf(gpt2_metadata(tokens=tokens, token_type=types))
    assert tokenizer.special_tokens["<|tool_call|>"] == len(tokens) - 1
    assert len(tokens) - 1 not in tokenizer.encode("<|tool_call|>")


@pytest.mark.parametrize("character", ["\x04", "\U00040000", "é"])
def test_a_character_without_tokens_is_refused_by_name(character: str) -> None:
    tokenizer = tokenizer_from_gguf(gpt2_metadata(missing_bytes=b"\x04\xf1\xa9"))
    with pytest.raises(Unencodable, match=re.escape(f"no token for U+{ord(character):04X}.")):
        tokenizer.encode(f"日本 {character} 日本")


def test_token_bytes_that_are_no_byte_symbols_are_the_text_itself() -> None:
    tokens = [*metadata_list(gpt2_metadata(), "tokens"), "日"]
    types = [*metadata_list(gpt2_metadata(), "token_type"), 1]
    tokenizer = tokenizer_from_gguf(gpt2_metadata(tokens=tokens, token_type=types))
    assert tokenizer.token_bytes(len(tokens) - 1) == "日".encode()


# Names in llama.cpp's src/llama-vocab.cpp that stand for the same rules: patterns, whole pieces, BOS.
OTHER_NAMES = {
    "deepseek-r1-qwen": ("qwen2", False),
    "megrez": ("qwen2", False),
    "stablelm2": ("qwen2", False),
    "llama3": ("llama-bpe", True),
    "llama-v3": ("llama-bpe", True),
    "falcon3": ("llama-bpe", True),
    "pixtral": ("llama-bpe", True),
    "phi-2": ("gpt-2", False),
    "olmo": ("gpt-2", False),
    "starcoder": ("smollm", False),
    "command-r": ("smollm", False),
}


@pytest.mark.parametrize("name", OTHER_NAMES)
def test_a_pre_tokenizer_is_known_by_its_other_names(name: str) -> None:
    own, adds_bos = OTHER_NAMES[name]
    ours, same = (tokenizer_from_gguf(gpt2_metadata(pre=pre)) for pre in (name, own))
    for text in [*TEXTS, UNMERGED_TEXT]:
        assert ours.encode(text) == same.encode(text), text
    assert (ours.encode("a")[0] == ours.bos_token_id) == adds_bos


@pytest.mark.parametrize("name", ["smaug-bpe", "dbrx", "glm4", "chatglm-bpe"])
def test_some_models_split_as_llama_3_does_and_still_merge_whole_pieces(name: str) -> None:
    metadata = gpt2_metadata(pre=name)
    tokenizer = tokenizer_from_gguf(metadata)
    for text in [*TEXTS, UNMERGED_TEXT]:
        assert tokenizer.encode(text) == naive_byte_pair_ids(text, metadata, [LLAMA3_PATTERN])


def test_gpt_oss_keeps_contractions_and_cases_of_words_together() -> None:
    pieces = pre_tokenizer_rules("gpt-4o").pre_tokenizer().pre_tokenize_str("I'M sure it's OpenAI's,\n 1234 x/\n\n  y")
    assert [piece.replace("\u0120", " ").replace("\u010a", "\n") for piece, _ in pieces] == [
        *("I'M", " sure", " it's", " Open", "AI's", ",\n", " ", "123", "4", " x", "/\n\n", " ", " y"),
    ]


def test_mistral_s_tekken_wants_bos_where_the_file_leaves_it_open() -> None:
    tokenizer = tokenizer_from_gguf(gpt2_metadata(pre="tekken"))
    assert tokenizer.encode("a")[0] == tokenizer.bos_token_id


def test_a_file_may_want_eos_behind_each_text() -> None:
    tokenizer = tokenizer_from_gguf(gpt2_metadata(add_eos_token=True))
    assert tokenizer.encode("a") == [*tokenizer_from_gguf(gpt2_metadata()).encode("a"), 2]
    assert tokenizer.encode("a", is_open=True) == tokenizer_from_gguf(gpt2_metadata()).encode("a")


def test_templates_for_a_purpose_are_found_by_their_names() -> None:
    templates = {
        "tokenizer.chat_template": "A",
        "tokenizer.chat_template.tool_use": "B",
        "tokenizer.chat_template.rag": "C",
        "tokenizer.chat_templates": ["tool_use", "rag"],
    }
    tokenizer = tokenizer_from_gguf(gpt2_metadata() | templates)
    assert tokenizer.chat_template == "A"
    assert tokenizer.named_templates == {"tool_use": "B", "rag": "C"}
    assert tokenizer.resized(tokenizer.vocab_size + 1).named_templates == {"tool_use": "B", "rag": "C"}
