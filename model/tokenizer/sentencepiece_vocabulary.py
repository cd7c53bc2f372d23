"""SentencePieceVocabulary: pieces of text in which U+2581 stands for a space, as in Llama 2 and Mistral.

Source: Kudo and Richardson, 2018, SentencePiece (arXiv:1808.06226).
"""

import struct
from collections.abc import Mapping, Sequence

from sentencepiece import SentencePieceProcessor

from caravan.model.tokenizer.added_tokens import control_tokens, encode_parsed
from caravan.model.tokenizer.vocabulary import BrokenTokenizer, TokenType, Unencodable, UnsupportedTokenizer

_SPACE = "\u2581"  # written for a space
_BPE = 2  # ModelType of byte-pair encoding in sentencepiece_model.proto


class SentencePieceVocabulary:
    """The vocabulary in a serialized ModelProto, which is what a tokenizer.model file holds.

    The proto says how text is normalized, whether a space is put before it, and whether extra spaces are removed.
    Raises BrokenTokenizer if `model_proto` is not a model, UnsupportedTokenizer for spaces written after words.
    """

    def __init__(self, model_proto: bytes) -> None:
        if not model_proto:
            raise BrokenTokenizer("The SentencePiece model is empty.")
        try:
            self._processor = SentencePieceProcessor(model_proto=model_proto)
            ids = list(range(self._processor.get_piece_size()))
            self.texts: Sequence[str] = self._processor.id_to_piece(ids)
        except (RuntimeError, UnicodeDecodeError) as error:
            raise BrokenTokenizer(f"The SentencePiece model cannot be read: {ascii(str(error))[:200]}") from None
        self.types: Sequence[TokenType] = [self._type(token_id) for token_id in ids]
        self.token_bytes: Sequence[bytes] = [_bytes(*token) for token in zip(self.texts, self.types, strict=True)]
        self._control = control_tokens(self.texts, self.types)
        self.special_tokens: Mapping[str, int] = self._control.special
        normalized = self._processor.normalize("a")
        if normalized.endswith((_SPACE, " ")):
            raise UnsupportedTokenizer(
                "The SentencePiece model puts spaces after words; only spaces before words are supported."
            )
        self.adds_space_prefix = normalized.startswith((_SPACE, " "))
        self.bos_token_id = _id_or_none(self._processor.bos_id())
        self.eos_token_id = _id_or_none(self._processor.eos_id())

    def encode(self, text: str) -> list[int]:
        """Return the token ids of `text`; the library matches user-defined tokens.

        Raises Unencodable if a character is unknown and the vocabulary does not have a token for each byte.
        """
        token_ids: list[int] = self._processor.encode(text)
        unknown = self._processor.unk_id()
        if unknown in token_ids:
            pieces: list[str] = self._processor.encode(text, out_type=str)
            raise Unencodable(pieces[token_ids.index(unknown)][0])
        return token_ids

    def encode_parsed(self, text: str, guard: str) -> list[int]:
        """See Vocabulary."""
        return encode_parsed(self._control, self.encode, text, guard)

    def _type(self, token_id: int) -> TokenType:
        if self._processor.is_control(token_id):
            return TokenType.CONTROL
        if self._processor.is_unknown(token_id):
            return TokenType.UNKNOWN
        if self._processor.is_byte(token_id):
            return TokenType.BYTE
        return TokenType.UNUSED if self._processor.is_unused(token_id) else TokenType.NORMAL


def sentencepiece_model_proto(
    texts: Sequence[str],
    scores: Sequence[float],
    types: Sequence[TokenType],
    *,
    add_dummy_prefix: bool,
    remove_extra_whitespaces: bool,
) -> bytes:
    """Return a serialized ModelProto of a byte-pair model that normalizes nothing but spaces.

    Source of the field numbers: sentencepiece_model.proto. The encoding is written out here because the generated
    classes need the protobuf package, which nothing else here does.
    """
    pieces = [
        _chunk(1, _chunk(1, text.encode()) + b"\x15" + struct.pack("<f", score) + _number(3, token_type))
        for text, score, token_type in zip(texts, scores, types, strict=True)
    ]
    trainer_spec = _number(3, _BPE) + _number(35, TokenType.BYTE in types)  # model_type, byte_fallback
    normalizer_spec = _chunk(1, b"identity") + _number(3, add_dummy_prefix) + _number(4, remove_extra_whitespaces)
    return b"".join(pieces) + _chunk(2, trainer_spec) + _chunk(3, normalizer_spec)


def _bytes(text: str, token_type: TokenType) -> bytes:
    if token_type is TokenType.BYTE:
        return bytes([int(text[3:5], 16)])  # <0x0A>
    return text.replace(_SPACE, " ").encode() if token_type.is_text else text.encode()


def _id_or_none(token_id: int) -> int | None:
    return token_id if token_id >= 0 else None


def _chunk(field: int, content: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(content)) + content


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
