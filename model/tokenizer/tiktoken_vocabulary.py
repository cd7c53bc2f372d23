"""TiktokenVocabulary: byte-level tokens with their ranks, the format of Meta's Llama 3."""

import base64
import binascii
from collections.abc import Mapping, Sequence
from pathlib import Path

import tiktoken

from caravan.model.tokenizer.added_tokens import control_tokens, encode_parsed
from caravan.model.tokenizer.pre_tokenizer_rules import LLAMA3
from caravan.model.tokenizer.vocabulary import BrokenTokenizer, TokenType, Unencodable

# The 256 special tokens. Source: llama_models/llama3/tokenizer.py of Meta's llama-models, as is the pattern LLAMA3.
_NAMED = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|reserved_special_token_0|>",
    "<|reserved_special_token_1|>",
    "<|finetune_right_pad_id|>",
    "<|step_id|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eom_id|>",
    "<|eot_id|>",
    "<|python_tag|>",
)
_NUM_SPECIAL = 256
_MAX_FILE_BYTES = 16 * 2**20


class TiktokenVocabulary:
    """The vocabulary in a file with a token in base64 and its rank on each line; special tokens follow the last rank.

    Raises OSError or BrokenTokenizer.
    """

    adds_space_prefix = False

    def __init__(self, path: Path) -> None:
        ranks = _ranks(path)
        special = [*_NAMED, *(f"<|reserved_special_token_{i}|>" for i in range(2, 2 + _NUM_SPECIAL - len(_NAMED)))]
        self._encoding = tiktoken.Encoding(
            path.name,
            pat_str=LLAMA3,
            mergeable_ranks=ranks,
            special_tokens={text: len(ranks) + i for i, text in enumerate(special)},
        )
        ordinary = list(ranks)
        self.token_bytes: Sequence[bytes] = [*ordinary, *map(str.encode, special)]
        self.texts: Sequence[str] = [*(token.decode("latin-1") for token in ordinary), *special]
        self.types: Sequence[TokenType] = [TokenType.NORMAL] * len(ordinary) + [TokenType.CONTROL] * len(special)
        self._control = control_tokens(self.texts, self.types)
        self.special_tokens: Mapping[str, int] = self._control.special
        self.bos_token_id = len(ordinary)
        self.eos_token_id = len(ordinary) + 1
        self._missing_bytes = {byte for byte in range(256) if bytes([byte]) not in ranks}

    def encode(self, text: str) -> list[int]:
        """Return the token ids of `text`; raises Unencodable."""
        if self._missing_bytes:
            for character in text:
                if self._missing_bytes.intersection(character.encode()):
                    raise Unencodable(character)
        return self._encoding.encode_ordinary(text)

    def encode_parsed(self, text: str, guard: str) -> list[int]:
        """See Vocabulary."""
        return encode_parsed(self._control, self.encode, text, guard)


def is_tiktoken_file(path: Path) -> bool:
    """Return whether a tokenizer.model is of this kind: a SentencePiece model does not begin with base64 and a rank."""
    with path.open("rb") as file:
        first, space, _ = file.readline(512).partition(b" ")
    try:
        return bool(first and space and base64.b64decode(first, validate=True))
    except binascii.Error:
        return False


def _ranks(path: Path) -> dict[bytes, int]:
    if path.stat().st_size > _MAX_FILE_BYTES:
        raise BrokenTokenizer(f"{path} is larger than {_MAX_FILE_BYTES} bytes.")
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(filter(None, path.read_bytes().split(b"\n"))):
        token, _, rank = line.partition(b" ")
        try:
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except ValueError:
            raise BrokenTokenizer(f"{path}: line {number + 1} is not a token in base64 and its rank.") from None
    if list(ranks.values()) != list(range(len(ranks))):
        raise BrokenTokenizer(f"{path}: its ranks are not 0, 1, 2 and so on, or a token is there twice.")
    return ranks
