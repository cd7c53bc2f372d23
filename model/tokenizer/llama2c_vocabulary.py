"""The vocabulary in llama2.c's tokenizer.bin, converted back to the SentencePiece model it was exported from."""

import struct
from pathlib import Path

from caravan.model.tokenizer.sentencepiece_vocabulary import SentencePieceVocabulary, sentencepiece_model_proto
from caravan.model.tokenizer.vocabulary import BrokenTokenizer, TokenType

_UNKNOWN, _BOS, _EOS = 0, 1, 2
_NUM_BYTES = 256  # byte tokens follow the three
_MAX_TOKENS = 2**20


def llama2c_vocabulary(path: Path) -> SentencePieceVocabulary:
    """Return the vocabulary in a tokenizer.bin; raises OSError or BrokenTokenizer.

    The file holds the length of the longest token, then score, length and bytes of each. Source: llama2.c.
    """
    content = path.read_bytes()
    texts: list[str] = []
    scores: list[float] = []
    types: list[TokenType] = []
    at = 4
    while at < len(content) and len(texts) <= _MAX_TOKENS:
        try:
            score, length = struct.unpack_from("<fi", content, at)
        except struct.error:
            raise BrokenTokenizer(f"{path} ends in the middle of token {len(texts)}.") from None
        at += 8
        if not 0 <= length <= len(content) - at:
            raise BrokenTokenizer(f"{path}: token {len(texts)} states {length} bytes, more than are left.")
        try:
            text = content[at : at + length].decode()
        except UnicodeDecodeError:
            raise BrokenTokenizer(f"{path}: token {len(texts)} is not UTF-8.") from None
        at += length
        texts.append(_piece(len(texts), text))
        scores.append(score)
        types.append(_type(len(texts) - 1))
    if len(texts) <= _EOS + _NUM_BYTES or len(set(texts)) < len(texts) or "" in texts:
        raise BrokenTokenizer(f"{path} has too few tokens, an empty one, or one twice.")
    return SentencePieceVocabulary(
        sentencepiece_model_proto(texts, scores, types, add_dummy_prefix=True, remove_extra_whitespaces=False)
    )


def _piece(token_id: int, text: str) -> str:
    if token_id in (_BOS, _EOS):
        return text.strip("\n")  # exported with line breaks around them
    return text.replace(" ", "\u2581")


def _type(token_id: int) -> TokenType:
    if token_id == _UNKNOWN:
        return TokenType.UNKNOWN
    if token_id in (_BOS, _EOS):
        return TokenType.CONTROL
    return TokenType.BYTE if token_id <= _EOS + _NUM_BYTES else TokenType.NORMAL
