"""TokenizerJson: a tokenizer.json, read by its own library, and rejected if it has unsupported rules."""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer
from tokenizers.pre_tokenizers import PreTokenizer

from caravan.model.tokenizer.vocabulary import BrokenTokenizer, UnsupportedTokenizer

SPACE = "\u2581"  # stands for a space in vocabularies from SentencePiece
MAX_FILE_BYTES = 64 * 2**20

# Supported values of each part of a decoder; others would decode to other bytes than `token_bytes`.
_DECODERS: Mapping[str, Sequence[Mapping[str, Any]]] = {
    "ByteLevel": [{}],
    "ByteFallback": [{}],
    "Fuse": [{}],
    "Metaspace": [{"replacement": SPACE}],
    "Replace": [{"pattern": {"String": SPACE}, "content": " "}],
    "Strip": [{"content": " ", "start": count, "stop": 0} for count in (0, 1)],
}
_MADE_BY_NFC = frozenset(";`K")  # the only ASCII characters that NFC makes of others: U+037E, U+1FEF, U+212A

logger = logging.getLogger(__name__)


class TokenizerJson:
    """The library's tokenizer of a file, and the rules of the file that this package applies itself.

    `tokens` are added tokens from another file of the folder; they take precedence, as in transformers. Raises OSError,
    BrokenTokenizer for an invalid file, UnsupportedTokenizer for one with other rules.
    """

    def __init__(self, path: Path, tokens: Sequence[AddedToken] = ()) -> None:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise BrokenTokenizer(f"{path} is larger than {MAX_FILE_BYTES} bytes.")
        content = path.read_bytes()
        try:
            self._fields = json.loads(content)
            self.library = Tokenizer.from_buffer(content)
            self.decoders = {part["type"]: part for part in parts(self._fields["decoder"], "decoders")}
            normalizers = parts(self._fields.get("normalizer"), "normalizers")
            stated = {str(token["content"]): token["id"] for token in self._fields.get("added_tokens") or []}
            num_stated = len(self._fields.get("added_tokens") or [])
        except Exception as error:  # the library raises plain Exception
            raise BrokenTokenizer(f"{path} cannot be read: {ascii(str(error))[1:-1][:160]}") from None
        if len(stated) < num_stated:
            raise BrokenTokenizer(f"{path} has an added token twice.")
        self.library.no_padding()
        self.library.no_truncation()
        _log_other_ids(path, self.library, stated)
        self._add(path, tokens)
        self._path, self._normalizers = path, normalizers
        self._check_decoder()
        self._check_model()
        self._check_normalized()

    @property
    def added_tokens(self) -> dict[int, AddedToken]:
        """The added tokens by id."""
        tokens: dict[int, AddedToken] = self.library.get_added_tokens_decoder()
        return tokens

    @property
    def unknown_token(self) -> str | None:
        """The unknown token, if the file names it."""
        model = self._fields["model"]
        unknown = model.get("unk_token")
        if model.get("type") == "Unigram" and model.get("unk_id") is not None:
            unknown = self.library.id_to_token(model["unk_id"])
        return unknown if isinstance(unknown, str) else None

    def later_pre_tokenizer(self) -> PreTokenizer | None:
        """Return the pre-tokenizer for a part of a text that is not its beginning."""
        rules = json.dumps(self._fields.get("pre_tokenizer"))
        later = rules.replace('"prepend_scheme": "first"', '"prepend_scheme": "never"')
        library = self.library
        if later != rules:
            empty = {"type": "BPE", "vocab": {}, "merges": []}
            library = Tokenizer.from_str(json.dumps({"model": empty, "pre_tokenizer": json.loads(later)}))
        pre_tokenizer: PreTokenizer | None = library.pre_tokenizer
        return pre_tokenizer

    def ids_around(self) -> tuple[list[int], list[int]]:
        """Return the ids that the post-processor puts before and after a text."""
        if self.library.post_processor is None:
            return [], []
        bare = Tokenizer(self.library.model)  # without a post-processor, which may even repeat the text
        encoded = map(bare.encode, ["a", *self.library.get_vocab()])
        sample = next((encoding for encoding in encoded if encoding.ids), bare.encode(""))
        ids = list(sample.ids)
        full: list[int] = self.library.post_process(sample).ids
        for start in range(len(full) - len(ids) + 1):
            if full[start : start + len(ids)] == ids:
                return full[:start], full[start + len(ids) :]
        raise self._unsupported("a post_processor that does more than put tokens before and after a text")

    def _add(self, path: Path, tokens: Sequence[AddedToken]) -> None:
        before = {token.content: token for token in self.added_tokens.values()}
        if other := [token for token in tokens if token != before.get(token.content) and token.content in before]:
            logger.warning(
                "%s and tokenizer_config.json state different rules for %d added tokens, among them %s; the rules "
                "of tokenizer_config.json are used.",
                path,
                len(other),
                ascii(other[0].content)[:40],
            )
        self.library.add_tokens(list(tokens))

    def _check_decoder(self) -> None:
        for part in parts(self._fields["decoder"], "decoders"):
            rules = _DECODERS.get(part["type"])
            if rules is None or not any(all(part.get(key) == rule[key] for key in rule) for rule in rules):
                raise self._unsupported(f"a decoder with {ascii(json.dumps(part))[1:-1][:120]}")
        if not self.decoders.keys() & {"ByteLevel", "ByteFallback", "Metaspace"}:
            raise self._unsupported(f"a decoder of {ascii(sorted(self.decoders))[:80]}")

    def _check_model(self) -> None:
        model = self._fields["model"]
        if model.get("type") not in ("BPE", "Unigram", None):
            raise self._unsupported(f"a model of the type {ascii(model['type'])[:40]}")
        for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
            if model.get(name):
                raise self._unsupported(f"a model with `{name}`")

    def _check_normalized(self) -> None:
        """Reject special tokens that normalization could produce from other text, which any client may send."""
        tokens = [token for token in self.added_tokens.values() if token.special and token.normalized]
        for rule in self._normalizers if tokens else ():
            kind = rule["type"]
            writes_spaces = kind == "Replace" and rule["pattern"] == {"String": " "} and rule["content"] == SPACE
            if kind == "Prepend" or writes_spaces:
                continue
            for token in tokens:
                if kind == "NFC" and token.content.isascii() and _MADE_BY_NFC.isdisjoint(token.content):
                    continue
                raise self._unsupported(
                    f"the special token {ascii(token.content)[:40]} with `normalized`, though its normalizer {kind} "
                    "could produce it from other text"
                )

    def _unsupported(self, fact: str) -> UnsupportedTokenizer:
        return UnsupportedTokenizer(f"{self._path} has {fact}, which is not supported.")


def parts(part: Any, name: str) -> list[dict[str, Any]]:
    """Return the parts of a component of the file, which may be a sequence of them."""
    if part is None:
        return []
    if part["type"] != "Sequence":
        return [part]
    return [inner for outer in part[name] for inner in parts(outer, name)]


def _log_other_ids(path: Path, library: Tokenizer, stated: Mapping[str, int]) -> None:
    """Log added tokens whose id in the file is not the one that its library gives them."""
    other = [text for text, token_id in stated.items() if text and library.token_to_id(text) != token_id]
    if other:
        logger.warning(
            "%s states the id %s for the added token %s; the id %s of the library `tokenizers` is used (%d tokens).",
            path,
            ascii(stated[other[0]])[:24],
            ascii(other[0])[:40],
            library.token_to_id(other[0]),
            len(other),
        )
