"""BytePairVocabulary: byte-level byte-pair encoding, as GPT-2, Llama 3, Qwen 2 and SmolLM have it.

Source: Radford et al., 2019, Language Models are Unsupervised Multitask Learners, section 2.2; Sennrich et al., 2016
(arXiv:1508.07909).
"""

import re
from collections.abc import Mapping, Sequence

from tokenizers import Regex, Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, PreTokenizer, Split
from tokenizers.pre_tokenizers import Sequence as PreTokenizers

from model.literal_search import LiteralSearch
from model.vocabulary import BrokenTokenizer, TokenType, Unencodable, UnsupportedTokenizer

# Each pattern splits the pieces the one before it left. Only merges inside a piece are made. Source: the
# tokenizer.json files of the models; llama.cpp, src/llama-vocab.cpp, names them.
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_PATTERNS: Mapping[str, tuple[str, ...]] = {
    "gpt-2": (_GPT2,),
    "smollm": (r"\p{N}", _GPT2),
    "llama-bpe": (_LLAMA3,),
    "qwen2": (_LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}"),),
    "tekken": (_TEKKEN,),  # Mistral, since NeMo
    # What llama.cpp does for a model whose pre-tokenizer its converter did not know.
    "default": (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"),
}


class BytePairVocabulary:
    """Byte-level tokens, their merges in order of rank, and the pre-tokenizer GGUF calls `pre`.

    Raises UnsupportedTokenizer for another pre-tokenizer, BrokenTokenizer for merges that do not fit the tokens.
    """

    adds_space_prefix = False

    def __init__(self, texts: Sequence[str], types: Sequence[TokenType], merges: Sequence[str], pre: str) -> None:
        symbols = byte_symbols()
        byte_values = {symbol: byte for byte, symbol in enumerate(symbols)}
        self.texts = texts
        self.types = types
        self.token_bytes: Sequence[bytes] = [
            written_bytes(text, byte_values) if token_type is TokenType.NORMAL else text.encode()
            for text, token_type in zip(texts, types, strict=True)
        ]
        # Merges know nothing of the other tokens: ordinary text that spells a control token must not become one.
        normal_ids = {text: i for i, text in enumerate(texts) if types[i] is TokenType.NORMAL}
        self._user_defined_ids = {text: i for i, text in enumerate(texts) if types[i] is TokenType.USER_DEFINED}
        self._user_defined = LiteralSearch(self._user_defined_ids)
        missing = [re.escape(bytes([byte])) for byte, symbol in enumerate(symbols) if symbol not in normal_ids]
        self._missing_byte = re.compile(b"|".join(missing) or b"(?!)")
        self._merging = Tokenizer(
            BPE(
                vocab=normal_ids,
                merges=_pairs(merges, normal_ids, frozenset(texts)),
                ignore_merges=pre
                in ("llama-bpe", "tekken"),  # a whole piece that is a token stays one, though no merge makes it
            )
        )
        self._merging.pre_tokenizer = _pre_tokenizer(pre)

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

    def _merge(self, text: str) -> list[int]:
        if not text:
            return []
        encoded = text.encode()
        if missing := self._missing_byte.search(encoded):  # the library would leave these bytes out
            raise Unencodable(text[len(encoded[: missing.start()].decode(errors="ignore"))])
        return encoded_ids(self._merging, text)


def encoded_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """Return the token ids of a text, without the special tokens that surround one; other threads run meanwhile.

    `Tokenizer.encode` would hold Python's lock all the time. The fast variant leaves out where each token is in the
    text.
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
    """Return the bytes that a byte-level token writes."""
    try:
        return bytes([byte_values[symbol] for symbol in text])
    except KeyError:  # not written in byte symbols, as some added tokens are
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


def _pre_tokenizer(pre: str) -> PreTokenizer:
    if pre not in _PATTERNS:
        raise UnsupportedTokenizer(
            f"The tokenizer has the pre-tokenizer {ascii(pre)[:80]}; supported are {', '.join(_PATTERNS)}."
        )
    splits: list[PreTokenizer] = [Split(Regex(pattern), behavior="isolated") for pattern in _PATTERNS[pre]]
    return PreTokenizers([*splits, ByteLevel(add_prefix_space=False, use_regex=False)])
