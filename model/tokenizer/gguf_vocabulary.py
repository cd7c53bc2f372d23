"""GgufVocabulary: the tokenizer fields of a GGUF file, checked.

Sources: ggml's docs/gguf.md and, for defaults and other details, llama.cpp's src/llama-vocab.cpp.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Never

from caravan.model.tokenizer.byte_pair_vocabulary import BytePairVocabulary
from caravan.model.tokenizer.pre_tokenizer_rules import pre_tokenizer_rules
from caravan.model.tokenizer.sentencepiece_vocabulary import SentencePieceVocabulary, sentencepiece_model_proto
from caravan.model.tokenizer.vocabulary import BrokenTokenizer, TokenType, UnsupportedTokenizer, Vocabulary

# Converters mark some control tokens as user-defined, so that any text could contain them.
_CONTROL_TEXT = re.compile(r"<\|.*\|>|<｜.*｜>|</?s>|<(start|end)_of_turn>")


@dataclass(frozen=True, kw_only=True)
class GgufVocabulary:
    """The tokenizer of a GGUF file."""

    vocabulary: Vocabulary
    bos_token_id: int | None
    eos_token_ids: list[int]  # the EOS token, if there is one, then the tokens that end a turn or a message
    prefix_ids: list[int]  # before each text: BOS, if the model uses it
    suffix_ids: list[int]  # after each text
    chat_template: str | None
    named_templates: Mapping[str, str]  # for special purposes, such as tool_use


def gguf_vocabulary(metadata: Mapping[str, object]) -> GgufVocabulary:
    """Return the tokenizer that the `tokenizer.*` fields describe.

    Raises UnsupportedTokenizer or BrokenTokenizer.
    """
    fields = _Fields(metadata)
    kind = fields.text("ggml.model")
    if kind not in ("llama", "gpt2"):
        raise UnsupportedTokenizer(
            f"The GGUF file has a tokenizer of kind {ascii(kind)[:80]}; supported are 'llama' and 'gpt2'."
        )
    texts = fields.texts("ggml.tokens")
    if len(set(texts)) < len(texts) or "" in texts:
        raise BrokenTokenizer("tokenizer.ggml.tokens has an empty token or one token twice.")
    is_sentencepiece = kind == "llama"
    bos = fields.token_id("ggml.bos_token_id", len(texts), 1 if is_sentencepiece else None)
    ends = [
        fields.token_id("ggml.eos_token_id", len(texts), 2 if is_sentencepiece else None),
        fields.token_id("ggml.eot_token_id", len(texts)),
        fields.token_id("ggml.eom_token_id", len(texts)),
    ]
    eos_token_ids = [token_id for token_id in ends if token_id is not None]
    types = _token_types(fields, texts, {bos, *eos_token_ids})
    if is_sentencepiece:
        vocabulary: Vocabulary = _sentencepiece_vocabulary(fields, texts, types)
        adds_bos_by_default = True
    else:
        pre = fields.text("ggml.pre")
        vocabulary = BytePairVocabulary(texts, types, fields.texts("ggml.merges"), pre)
        adds_bos_by_default = pre_tokenizer_rules(pre).adds_bos
    prefix_ids = [bos] if fields.flag("ggml.add_bos_token", adds_bos_by_default) else []
    suffix_ids = ends[:1] if fields.flag("ggml.add_eos_token", False) else []
    for name, ids in (("bos", prefix_ids), ("eos", suffix_ids)):
        if None in ids:
            raise BrokenTokenizer(
                f"The tokenizer adds a {name.upper()} token, but tokenizer.ggml.{name}_token_id is missing."
            )
    return GgufVocabulary(
        vocabulary=vocabulary,
        bos_token_id=bos,
        eos_token_ids=eos_token_ids,
        prefix_ids=[token_id for token_id in prefix_ids if token_id is not None],
        suffix_ids=[token_id for token_id in suffix_ids if token_id is not None],
        chat_template=fields.text("chat_template") if fields.has("chat_template") else None,
        named_templates=fields.texts_below("chat_template."),
    )


def _token_types(fields: "_Fields", texts: Sequence[str], control_ids: set[int | None]) -> list[TokenType]:
    numbers = fields.numbers("ggml.token_type", len(texts))
    try:
        types = [TokenType(int(number)) for number in numbers]
    except ValueError:
        raise BrokenTokenizer("tokenizer.ggml.token_type has a type outside 1..6.") from None
    for token_id, (text, token_type) in enumerate(zip(texts, types, strict=True)):
        if token_id in control_ids or (token_type is TokenType.USER_DEFINED and _CONTROL_TEXT.fullmatch(text)):
            types[token_id] = TokenType.CONTROL
    return types


def _sentencepiece_vocabulary(
    fields: "_Fields", texts: Sequence[str], types: Sequence[TokenType]
) -> SentencePieceVocabulary:
    unknown = fields.token_id("ggml.unknown_token_id", len(texts), 0)
    one_unknown = [  # SentencePiece requires one
        TokenType.UNKNOWN if i == unknown else TokenType.UNUSED if token_type is TokenType.UNKNOWN else token_type
        for i, token_type in enumerate(types)
    ]
    proto = sentencepiece_model_proto(
        texts,
        fields.numbers("ggml.scores", len(texts)),
        one_unknown,
        add_dummy_prefix=fields.flag("ggml.add_space_prefix", True),
        remove_extra_whitespaces=fields.flag("ggml.remove_extra_whitespaces", False),
    )
    return SentencePieceVocabulary(proto)


class _Fields:
    """The `tokenizer.*` fields by the rest of their name; each method raises BrokenTokenizer for another type."""

    def __init__(self, metadata: Mapping[str, object]) -> None:
        self._metadata = metadata

    def has(self, name: str) -> bool:
        return f"tokenizer.{name}" in self._metadata

    def text(self, name: str) -> str:
        value = self._value(name)
        if not isinstance(value, str):
            raise BrokenTokenizer(f"tokenizer.{name} is not a string.")
        return value

    def texts_below(self, prefix: str) -> dict[str, str]:
        """Return the fields whose names have a prefix, by the rest of their names."""
        start = f"tokenizer.{prefix}"
        names = [key.removeprefix(start) for key in self._metadata if key.startswith(start)]
        return {name: self.text(prefix + name) for name in names}

    def flag(self, name: str, default: bool) -> bool:
        value = self._value(name) if self.has(name) else default
        if not isinstance(value, bool):
            raise BrokenTokenizer(f"tokenizer.{name} is not a boolean.")
        return value

    def token_id(self, name: str, num_tokens: int, default: int | None = None) -> int | None:
        if not self.has(name):
            return default if default is not None and default < num_tokens else None
        value = self._value(name)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < num_tokens:
            raise BrokenTokenizer(
                f"tokenizer.{name} is {ascii(value)[:24]}; it must be a token id, from 0 to {num_tokens - 1}."
            )
        return value

    def texts(self, name: str) -> list[str]:
        return [item if isinstance(item, str) else self._wrong_item(name) for item in self._list(name)]

    def numbers(self, name: str, num_tokens: int) -> list[int | float]:
        values = self._list(name)
        if len(values) != num_tokens:
            raise BrokenTokenizer(f"tokenizer.{name} has {len(values)} items for {num_tokens} tokens.")
        return [item if isinstance(item, int | float) else self._wrong_item(name) for item in values]

    def _list(self, name: str) -> list[object]:
        value = self._value(name)
        if not isinstance(value, list) or not value:
            raise BrokenTokenizer(f"tokenizer.{name} is not a list, or an empty one.")
        return value

    def _value(self, name: str) -> object:
        try:
            return self._metadata[f"tokenizer.{name}"]
        except KeyError:
            raise BrokenTokenizer(
                f"The GGUF file has no tokenizer.{name}. Convert the model again with a current converter."
            ) from None

    def _wrong_item(self, name: str) -> Never:
        raise BrokenTokenizer(f"tokenizer.{name} has an item of the wrong type.")
