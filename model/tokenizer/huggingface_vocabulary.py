"""HuggingFaceVocabulary: the tokens in a tokenizer.json, encoded by the library that wrote it."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import Tokenizer

from caravan.model.tokenizer.added_tokens import AddedToken, AddedTokens, TextPart
from caravan.model.tokenizer.byte_pair_vocabulary import byte_symbols, encoded_ids, written_bytes
from caravan.model.tokenizer.tokenizer_json import SPACE, TokenizerJson
from caravan.model.tokenizer.vocabulary import BrokenTokenizer, TokenType, Unencodable

MAX_TOKENS = 2**22


class HuggingFaceVocabulary:
    """The vocabulary of a tokenizer.json: byte-level byte pairs, or pieces with a sign for spaces.

    Special added tokens are control tokens; `encode` treats their text as ordinary text. Added tokens that match the
    text as it is are matched here, because the library does not know guards; those that match the normalized text are
    matched by the library. `tokens` and the errors are those of TokenizerJson.
    """

    def __init__(self, path: Path, tokens: Sequence[tokenizers.AddedToken] = ()) -> None:
        file = TokenizerJson(path, tokens)
        library, added = file.library, file.added_tokens
        self._is_byte_level = "ByteLevel" in file.decoders
        ids = library.get_vocab(with_added_tokens=True)
        num_tokens = max(ids.values(), default=-1) + 1
        if not 0 < num_tokens <= MAX_TOKENS:
            raise BrokenTokenizer(f"{path} has {num_tokens} tokens; there can be 1 to {MAX_TOKENS}.")
        texts, types = _texts_and_types(file, ids)
        self.texts: Sequence[str] = texts
        self.types: Sequence[TokenType] = types
        self._unknown_id = None if file.unknown_token is None else ids.get(file.unknown_token)
        byte_values = {symbol: byte for byte, symbol in enumerate(byte_symbols())}
        self.token_bytes: Sequence[bytes] = [
            self._bytes(text, token_type, byte_values) for text, token_type in zip(self.texts, self.types, strict=True)
        ]
        missing = [re.escape(bytes([byte])) for symbol, byte in byte_values.items() if symbol not in ids]
        self._missing_byte = re.compile(b"|".join(missing)) if missing and self._is_byte_level else None
        if not self._is_byte_level and self._unknown_id is None and self.types.count(TokenType.BYTE) < 256:
            raise BrokenTokenizer(f"{path} has neither an unknown token nor a token for each byte.")
        self.prefix_ids, self.suffix_ids = file.ids_around()
        self._raw = AddedTokens([_rules(ids, token) for token in added.values() if not token.normalized])
        self.special_tokens: Mapping[str, int] = {
            token.content: ids[token.content] for token in added.values() if token.special
        }
        self._set_libraries(file, ids)
        self.adds_space_prefix = not self._is_byte_level and library.decode(
            library.encode("a", add_special_tokens=False).ids
        ) != b"".join(self.token_bytes[token_id] for token_id in self.encode("a")).decode(errors="replace")

    def encode(self, text: str) -> list[int]:
        """Return the token ids of `text`, with the added tokens in it that are not special.

        Raises Unencodable.
        """
        if not self._raw.has_ordinary:
            return self._encode_part(TextPart(text, is_start=True), parse_special=False)
        return self._encode_parts(text, parse_special=False)

    def encode_parsed(self, text: str, guard: str) -> list[int]:
        """See Vocabulary."""
        return self._encode_parts(text, parse_special=True, guard=guard)

    def _set_libraries(self, file: TokenizerJson, ids: Mapping[str, int]) -> None:
        """Make the library's tokenizers for parts of a text; they share the model and have fewer added tokens."""
        library, normalizer = file.library, file.library.normalizer
        normalized = [token for token in file.added_tokens.values() if token.normalized]
        self._has_normalized_special = any(token.special for token in normalized)
        pre_tokenizers = [library.pre_tokenizer, file.later_pre_tokenizer()]  # at the beginning of a text; later
        self._ordinary = [_part_library(library, normalizer, part, normalized) for part in pre_tokenizers]
        for part in self._ordinary:
            part.encode_special_tokens = True  # which means: treat them as ordinary text
        self._parsing, self._bare = self._ordinary, self._ordinary
        if self._has_normalized_special:
            self._parsing = [_part_library(library, normalizer, part, normalized) for part in pre_tokenizers]
            self._bare = [_part_library(library, None, part, []) for part in pre_tokenizers]
        self._normalizer = normalizer
        self._normalized = AddedTokens(
            [
                _rules(ids, token, token.content if normalizer is None else normalizer.normalize_str(token.content))
                for token in normalized
            ]
        )
        own_ids = {self._ordinary[0].token_to_id(token.content): ids[token.content] for token in normalized}
        self._other_ids = {own: token_id for own, token_id in own_ids.items() if own != token_id}

    def _encode_parts(self, text: str, *, parse_special: bool, guard: str = "") -> list[int]:
        token_ids: list[int] = []
        for part in self._raw.split(text, parse_special=parse_special, guard=guard):
            if isinstance(part, int):
                token_ids.append(part)
            elif part.guards and self._has_normalized_special:
                token_ids += self._encode_guarded(part, guard)
            else:
                token_ids += self._encode_part(part, parse_special=parse_special)
        return token_ids

    def _encode_guarded(self, part: TextPart, guard: str) -> list[int]:
        """Return the token ids of a part in which guards may hide special tokens from the normalized text."""
        text = part.guarded(guard)
        normalized = text if self._normalizer is None else self._normalizer.normalize_str(text)
        token_ids: list[int] = []
        for rest in self._normalized.split(normalized, parse_special=True, guard=guard):
            if isinstance(rest, int):
                token_ids.append(rest)
            else:
                library = self._bare[not (part.is_start and rest.is_start)]
                token_ids += self._library_ids(library, rest.text)
        return token_ids

    def _encode_part(self, part: TextPart, *, parse_special: bool) -> list[int]:
        return self._library_ids((self._parsing if parse_special else self._ordinary)[not part.is_start], part.text)

    def _library_ids(self, library: Tokenizer, text: str) -> list[int]:
        """Return the ids; raises Unencodable where the library used the unknown token or dropped bytes."""
        token_ids = encoded_ids(library, text)
        if self._other_ids:
            token_ids = [self._other_ids.get(token_id, token_id) for token_id in token_ids]
        is_unknown = self._unknown_id in token_ids
        if is_unknown or (self._missing_byte is not None and self._missing_byte.search(_normalized(library, text))):
            for character in dict.fromkeys(text):
                ids: list[int] = library.encode(character, add_special_tokens=False).ids
                written = sum(len(self.token_bytes[self._other_ids.get(token_id, token_id)]) for token_id in ids)
                if self._unknown_id in ids or (self._is_byte_level and written < len(character.encode())):
                    raise Unencodable(character)
            if is_unknown and library.encode_special_tokens:  # else the text may contain its name
                raise Unencodable(text[0])
        return token_ids

    def _bytes(self, text: str, token_type: TokenType, byte_values: Mapping[str, int]) -> bytes:
        if token_type is TokenType.BYTE:
            return bytes([int(text[3:5], 16)])
        if token_type is not TokenType.NORMAL:
            return text.encode()
        if not self._is_byte_level:
            return text.replace(SPACE, " ").encode()
        return written_bytes(text, byte_values)


def _texts_and_types(file: TokenizerJson, ids: Mapping[str, int]) -> tuple[list[str], list[TokenType]]:
    """Return text and type of each id; ids without a token are unused."""
    num_tokens = max(ids.values()) + 1
    texts = [f"<unused {token_id}>" for token_id in range(num_tokens)]
    types = [TokenType.UNUSED] * num_tokens
    has_bytes = "ByteFallback" in file.decoders
    for text, token_id in ids.items():
        is_byte = has_bytes and len(text) == 6 and text.startswith("<0x") and text.endswith(">")
        texts[token_id], types[token_id] = text, TokenType.BYTE if is_byte else TokenType.NORMAL
    for token_id, token in file.added_tokens.items():
        types[token_id] = TokenType.CONTROL if token.special else TokenType.USER_DEFINED
    if file.unknown_token is not None and file.unknown_token in ids:
        types[ids[file.unknown_token]] = TokenType.UNKNOWN
    return texts, types


def _normalized(library: Tokenizer, text: str) -> bytes:
    normalized: str = text if library.normalizer is None else library.normalizer.normalize_str(text)
    return normalized.encode()


def _rules(ids: Mapping[str, int], token: tokenizers.AddedToken, text: str | None = None) -> AddedToken:
    """Return an added token of the library as an AddedToken, matched by `text` if that differs from its own."""
    return AddedToken(
        text=token.content if text is None else text,
        token_id=ids[token.content],
        is_special=token.special,
        takes_space_before=token.lstrip,
        takes_space_after=token.rstrip,
        is_whole_word=token.single_word,
    )


def _part_library(
    library: Tokenizer, normalizer: Any, pre_tokenizer: Any, tokens: Sequence[tokenizers.AddedToken]
) -> Tokenizer:
    """Return a tokenizer with the model of another one and only some of its added tokens."""
    part = Tokenizer(library.model)
    if normalizer is not None:
        part.normalizer = normalizer
    if pre_tokenizer is not None:
        part.pre_tokenizer = pre_tokenizer
    part.add_tokens(list(tokens))
    return part
