"""Small vocabularies of both kinds, and byte-pair encoding written a second time as an oracle."""

import io
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import regex
from hypothesis import strategies as st
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer
from tokenizers.pre_tokenizers import ByteLevel

CONTROL_TEXTS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
USER_DEFINED_TEXTS = ["<tool>", "<tool>s"]
MERGES = [
    "Ġ Ġ",
    "h e",
    "l l",
    "he ll",
    "hell o",
    "Ġ w",
    "o r",
    "Ġw or",
    "Ġ 2",
    "1 2",
    "12 3",
    "2 3",
    "Ċ Ċ",
    "' s",
    "' S",
]
GUARD = "\ue000"
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
UNMERGED_TEXT = "xyz"  # a token that no merge makes
CORPUS = [
    "the quick brown fox jumps over the lazy dog. Hello world!",
    "Once upon a time there was a little girl named Lily.",
    "  two   spaces and 123 numbers 4567",
    "<s> is no token here, nor is </s>",
]


def gpt2_metadata(*, missing_bytes: bytes = b"", **changes: object) -> dict[str, object]:
    """Return the GGUF fields of a byte-level vocabulary; `changes` go under tokenizer.ggml, None removes a field."""
    symbols = [symbol for byte, symbol in enumerate(_byte_symbols()) if byte not in missing_bytes]
    merged = [merge.replace(" ", "") for merge in MERGES]
    tokens = [*CONTROL_TEXTS, *symbols, *merged, UNMERGED_TEXT, *USER_DEFINED_TEXTS, "[PAD]"]
    num_normal = len(symbols) + len(merged) + 1
    fields = {
        "model": "gpt2",
        "pre": "gpt-2",
        "tokens": tokens,
        "token_type": [3] * len(CONTROL_TEXTS) + [1] * num_normal + [4] * len(USER_DEFINED_TEXTS) + [5],
        "merges": list(MERGES),
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    return _with_prefix(fields | changes)


def naive_byte_pair_ids(text: str, metadata: dict[str, object], patterns: Sequence[str]) -> list[int]:
    """Return the ids of ordinary text: patterns split it one after another, then the earliest merge goes first."""
    pieces = [text]
    for pattern in patterns:
        pieces = [part for piece in pieces for part in regex.split(f"({pattern})", piece, flags=regex.V1) if part]
    tokens = metadata["tokenizer.ggml.tokens"]
    assert isinstance(tokens, list)
    byte_symbols = _byte_symbols()
    ids = []
    for piece in pieces:
        symbols = [byte_symbols[byte] for byte in piece.encode()]
        while pairs := [f"{a} {b}" for a, b in itertools.pairwise(symbols) if f"{a} {b}" in MERGES]:
            left, right = min(pairs, key=MERGES.index).split(" ")
            position = next(i for i in range(len(symbols)) if symbols[i : i + 2] == [left, right])
            symbols[position : position + 2] = [left + right]
        ids += [tokens.index(symbol) for symbol in symbols]
    return ids


def trained_sentencepiece(**options: Any) -> bytes:
    """Return a serialized byte-pair SentencePiece model with a token for each byte, trained on CORPUS."""
    proto = io.BytesIO()
    defaults: dict[str, Any] = {
        "vocab_size": 420,
        "model_type": "bpe",
        "byte_fallback": True,
        "remove_extra_whitespaces": False,
        "normalization_rule_name": "identity",
        "hard_vocab_limit": False,
        "minloglevel": 2,
    }
    SentencePieceTrainer.train(sentence_iterator=iter(CORPUS * 20), model_writer=proto, **(defaults | options))
    return proto.getvalue()


def llama_metadata(proto: bytes, *, user_defined: Sequence[str] = (), **changes: object) -> dict[str, object]:
    """Return the GGUF fields a converter writes for a SentencePiece model."""
    processor = SentencePieceProcessor(model_proto=proto)
    ids = range(processor.get_piece_size())
    tokens = [processor.id_to_piece(i) for i in ids]

    def token_type(i: int) -> int:
        flags = [
            (processor.is_unknown(i), 2),
            (processor.is_control(i), 3),
            (tokens[i] in user_defined, 4),
            (processor.is_unused(i), 5),
            (processor.is_byte(i), 6),
        ]
        return next((number for is_type, number in flags if is_type), 1)

    fields = {
        "model": "llama",
        "tokens": tokens,
        "scores": [processor.get_score(i) for i in ids],
        "token_type": [token_type(i) for i in ids],
        "bos_token_id": processor.bos_id(),
        "eos_token_id": processor.eos_id(),
    }
    return _with_prefix(fields | changes)


def _with_prefix(fields: dict[str, object]) -> dict[str, object]:
    return {f"tokenizer.ggml.{name}": value for name, value in fields.items() if value is not None}


def _byte_symbols() -> list[str]:
    """Return the library's characters for the bytes: the byte's own character, or else the next one from U+0100 on."""
    alphabet = sorted(ByteLevel.alphabet())
    own = {ord(symbol): symbol for symbol in alphabet if ord(symbol) < 0x100}
    others = iter(alphabet[len(own) :])
    return [own[byte] if byte in own else next(others) for byte in range(0x100)]


def metadata_list(metadata: Mapping[str, object], name: str) -> list[Any]:
    """Return a list of the tokenizer's fields."""
    value = metadata[f"tokenizer.ggml.{name}"]
    assert isinstance(value, list)
    return value
