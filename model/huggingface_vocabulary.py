"""HuggingFaceVocabulary: the tokens in a tokenizer.json, split by the library that wrote it."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from model.byte_pair_vocabulary import byte_symbols, encoded_ids, written_bytes
from model.vocabulary import BrokenTokenizer, TokenType, Unencodable, UnsupportedTokenizer

_SPACE = "\u2581"  # written for a space in vocabularies that come from SentencePiece
MAX_FILE_BYTES = 64 * 2**20
MAX_TOKENS = 2**22


class HuggingFaceVocabulary:
    """The vocabulary of a tokenizer.json: byte-level byte pairs, or pieces with a sign for spaces.

    Added tokens that are special are control tokens; their text is ordinary text to `encode`, as everywhere else here.
    Raises OSError, BrokenTokenizer for a file that is none, UnsupportedTokenizer for one that decodes in another way.
    """

    def __init__(self, path: Path) -> None:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise BrokenTokenizer(f"{path} is larger than {MAX_FILE_BYTES} bytes.")
        content = path.read_bytes()
        try:
            fields = json.loads(content)
            self._tokenizer = Tokenizer.from_buffer(content)
            kinds = {part["type"]: part for part in _parts(fields["decoder"], "decoders")}
        except Exception as error:  # the library raises plain Exception
            raise BrokenTokenizer(f"{path} cannot be read: {ascii(str(error))[1:-1][:160]}") from None
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._tokenizer.encode_special_tokens = True  # which means: as if they were no special tokens
        self._is_byte_level = "ByteLevel" in kinds
        if not self._is_byte_level and not kinds.keys() & {"ByteFallback", "Metaspace"}:
            raise UnsupportedTokenizer(f"{path} decodes by {ascii(sorted(kinds))[:80]}, which is not supported.")
        ids = self._tokenizer.get_vocab(with_added_tokens=True)
        num_tokens = max(ids.values(), default=-1) + 1
        if not 0 < num_tokens <= MAX_TOKENS:
            raise BrokenTokenizer(f"{path} has {num_tokens} tokens; there can be 1 to {MAX_TOKENS}.")
        added = self._tokenizer.get_added_tokens_decoder()
        texts = [f"<unused {token_id}>" for token_id in range(num_tokens)]
        types = [TokenType.UNUSED] * num_tokens
        for text, token_id in ids.items():
            texts[token_id], types[token_id] = text, self._type(text, kinds)
        for token_id, token in added.items():
            types[token_id] = TokenType.CONTROL if token.special else TokenType.USER_DEFINED
        unknown = _unknown_token(fields, ids)
        if unknown is not None:
            types[unknown] = TokenType.UNKNOWN
        self._unknown_id = unknown
        has_all_bytes = fields["model"].get("type") == "BPE" and ids.keys() >= {*byte_symbols()}
        self._may_lose_bytes = self._is_byte_level and not has_all_bytes
        self.texts: Sequence[str] = texts
        self.types: Sequence[TokenType] = types
        byte_values = {symbol: byte for byte, symbol in enumerate(byte_symbols())}
        self.token_bytes: Sequence[bytes] = [
            self._bytes(text, token_type, byte_values) for text, token_type in zip(texts, types, strict=True)
        ]
        self.adds_space_prefix = not self._is_byte_level and self._tokenizer.decode(
            self._tokenizer.encode("a", add_special_tokens=False).ids
        ) != b"".join(self._encoded_bytes("a")).decode(errors="replace")

    def encode(self, text: str) -> list[int]:
        """Return the token ids of `text`; added tokens that are not special are looked for by the library.

        Raises Unencodable.
        """
        token_ids = encoded_ids(self._tokenizer, text)
        if self._unknown_id is not None and self._unknown_id in token_ids:
            raise Unencodable(self._first_that_fails(text))
        if self._may_lose_bytes:  # the library leaves out bytes that have no token
            normalizer = self._tokenizer.normalizer
            expected = text if normalizer is None else normalizer.normalize_str(text)
            if sum(len(self.token_bytes[token_id]) for token_id in token_ids) < len(expected.encode()):
                raise Unencodable(self._first_that_fails(text))
        return token_ids

    def adds_bos(self, bos_token_id: int) -> bool:
        """Return whether the file's own rule puts this token before a text."""
        return self._tokenizer.encode("", add_special_tokens=True).ids[:1] == [bos_token_id]

    def _first_that_fails(self, text: str) -> str:
        for character in text:
            token_ids = self._tokenizer.encode(character, add_special_tokens=False).ids
            written = sum(len(self.token_bytes[token_id]) for token_id in token_ids)
            if self._unknown_id in token_ids or (self._is_byte_level and written < len(character.encode())):
                return character
        return text[0]

    def _encoded_bytes(self, text: str) -> Iterator[bytes]:
        for token_id in self._tokenizer.encode(text, add_special_tokens=False).ids:
            yield self.token_bytes[token_id]

    def _type(self, text: str, kinds: Mapping[str, Any]) -> TokenType:
        is_byte = "ByteFallback" in kinds and len(text) == 6 and text.startswith("<0x") and text.endswith(">")
        return TokenType.BYTE if is_byte else TokenType.NORMAL

    def _bytes(self, text: str, token_type: TokenType, byte_values: Mapping[str, int]) -> bytes:
        if token_type is TokenType.BYTE:
            return bytes([int(text[3:5], 16)])
        if token_type is not TokenType.NORMAL:
            return text.encode()
        if not self._is_byte_level:
            return text.replace(_SPACE, " ").encode()
        return written_bytes(text, byte_values)


def _parts(part: Any, name: str) -> list[dict[str, Any]]:
    """Return the parts of a component of the file, which may be a sequence of them."""
    if part is None:
        return []
    return list(part[name]) if part["type"] == "Sequence" else [part]


def _unknown_token(fields: Mapping[str, Any], ids: Mapping[str, int]) -> int | None:
    unknown = fields["model"].get("unk_token")
    return ids.get(unknown) if isinstance(unknown, str) else None
