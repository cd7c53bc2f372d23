"""BytePairVocabulary: byte-level byte-pair encoding, as in GPT-2, Llama 3, Qwen 2 and SmolLM.

Source: Radford et al., 2019, Language Models are Unsupervised Multitask Learners, section 2.2; Sennrich et al., 2016
(arXiv:1508.07909).
"""

import re
from collections.abc import Mapping, Sequence

from tokenizers import Tokenizer
from tokenizers.models import BPE

from caravan.model.tokenizer.added_tokens import control_tokens, encode_parsed
from caravan.model.tokenizer.literal_search import LiteralSearch
from caravan.model.tokenizer.pre_tokenizer_rules import pre_tokenizer_rules
from caravan.model.tokenizer.vocabulary import BrokenTokenizer, TokenType, Unencodable


class BytePairVocabulary:
    """Byte-level tokens, their merges in order of rank, and the pre-tokenizer GGUF calls `pre`.

    Raises UnsupportedTokenizer for another pre-tokenizer, BrokenTokenizer for merges that do not fit the tokens.
    """

    adds_space_prefix = False

    def __init__(self, texts: Sequence[str], types: Sequence[TokenType], merges: Sequence[str], pre: str) -> None:
        rules = pre_tokenizer_rules(pre)
        symbols = byte_symbols()
        byte_values = {symbol: byte for byte, symbol in enumerate(symbols)}
        self.texts = texts
        self.types = types
        self.token_bytes: Sequence[bytes] = [
            written_bytes(text, byte_values) if token_type is TokenType.NORMAL else text.encode()
            for text, token_type in zip(texts, types, strict=True)
        ]
        # Merges use normal tokens only: ordinary text that spells a control token must not become one.
        normal_ids = {text: i for i, text in enumerate(texts) if types[i] is TokenType.NORMAL}
        self._user_defined_ids = {text: i for i, text in enumerate(texts) if types[i] is TokenType.USER_DEFINED}
        self._control = control_tokens(texts, types)
        self.special_tokens: Mapping[str, int] = self._control.special
        self._user_defined = LiteralSearch(self._user_defined_ids)
        missing = [re.escape(bytes([byte])) for byte, symbol in enumerate(symbols) if symbol not in normal_ids]
        self._missing_byte = re.compile(b"|".join(missing) or b"(?!)")
        self._merging = Tokenizer(
            BPE(
                vocab=normal_ids,
                merges=_pairs(merges, normal_ids, frozenset(texts)),
                ignore_merges=rules.ignores_merges,
            )
        )
        self._merging.pre_tokenizer = rules.pre_tokenizer()

    def encode(self, text: str) -> list[int]:
        """Return the token ids of `text`; user-defined tokens are taken out before the merges.

        Raises Unencodable.
        """
        token_ids: list[int] = []
        start = 0
        for match in self._user_defined.matches(text):
            token_ids += self._merge(text[start : match.start()])
            token_ids.append(self._user_defined_ids[match.group()])
            start = match.end()
        return token_ids + self._merge(text[start:])

    def encode_parsed(self, text: str, guard: str) -> list[int]:
        """See Vocabulary."""
        return encode_parsed(self._control, self.encode, text, guard)

    def _merge(self, text: str) -> list[int]:
        if not text:
            return []
        encoded = text.encode()
        if missing := self._missing_byte.search(encoded):  # the library would drop these bytes
            raise Unencodable(text[len(encoded[: missing.start()].decode(errors="ignore"))])
        return encoded_ids(self._merging, text)


def encoded_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """Return the token ids of a text, without the special tokens that surround one; other threads run meanwhile.

    `Tokenizer.encode` would hold the GIL all the time. The fast variant omits the position of each token in the text.
    """
    (encoding,) = tokenizer.encode_batch_fast([text], add_special_tokens=False)
    token_ids: list[int] = encoding.ids
    return token_ids


def byte_symbols() -> list[str]:
    """Return the character that stands for each byte in byte-level tokens, in the order of the bytes.

    Source: bytes_to_unicode in GPT-2's encoder.py: printable Latin-1 characters stand for themselves.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(others)) for byte in range(0x100)]


def written_bytes(text: str, byte_values: Mapping[str, int]) -> bytes:
    """Return the bytes that a byte-level token represents."""
    try:
        return bytes([byte_values[symbol] for symbol in text])
    except KeyError:  # some added tokens are not written in byte symbols
        return text.encode()


def _pairs(merges: Sequence[str], normal_ids: Mapping[str, int], texts: frozenset[str]) -> list[tuple[str, str]]:
    """Return the merges that make a normal token of two normal tokens.

    Raises BrokenTokenizer for a merge with a token the vocabulary lacks.
    """
    pairs = []
    for rank, merge in enumerate(merges):
        left, space, right = merge.partition(" ")
        if not (left and space and right) or " " in right:
            raise BrokenTokenizer(f"Merge {rank} is {ascii(merge)[:80]}; it must be two tokens with a space between.")
        if left in normal_ids and right in normal_ids and left + right in normal_ids:
            pairs.append((left, right))
        elif not texts.issuperset((left, right, left + right)):
            raise BrokenTokenizer(f"Merge {rank} is {ascii(merge)[:80]}; the vocabulary lacks one of its tokens.")
    return pairs
