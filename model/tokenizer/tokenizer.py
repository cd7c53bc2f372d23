"""Tokenizer: text to token ids and back, by the rules in the model's own files."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from caravan.model.tokenizer.detokenizer import Detokenizer
from caravan.model.tokenizer.gguf_vocabulary import gguf_vocabulary
from caravan.model.tokenizer.vocabulary import (
    BrokenTokenizer,
    ResizedVocabulary,
    Unencodable,
    UnsupportedTokenizer,
    Vocabulary,
)

__all__ = [
    "BrokenTokenizer",
    "Tokenizer",
    "Unencodable",
    "UnsupportedTokenizer",
    "tokenizer_from_gguf",
]

# Control tokens after which a model only continues with another turn or document, so no answer contains them.
# A file states one such token as EOS, while chat models end a turn with one and a document with another (Llama 3 has
# three). <|end|> is not included: in gpt-oss it ends a message but not the answer; models that end turns with it have
# it in eos_token_id or eot_token_id.
_END_OF_TURN = frozenset(
    {
        "</s>",
        "<|im_end|>",  # ChatML: SmolLM2, Qwen
        "<|endoftext|>",  # GPT-2, SmolLM2, Qwen: end of a document
        "<|end_of_text|>",  # Llama 3: end of a document
        "<|eot_id|>",  # Llama 3: end of a turn
        "<|eom_id|>",  # Llama 3.1: end of a message that calls a tool, whose answer is another turn
        "<end_of_turn>",  # Gemma
        "<|return|>",  # gpt-oss: end of a turn
        "<|call|>",  # gpt-oss: end of a message that calls a tool
    }
)


class Tokenizer:
    """A vocabulary with its rules: control tokens, BOS, the tokens that end a sequence.

    Encoding changes nothing in it, so several threads may encode at a time. Every kind of vocabulary lets other threads
    run while it encodes.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        *,
        bos_token_id: int | None,
        eos_token_ids: Sequence[int],
        prefix_ids: Sequence[int] = (),
        suffix_ids: Sequence[int] = (),
        chat_template: str | None = None,
        named_templates: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """`prefix_ids` (BOS) and `suffix_ids` come before and after each text."""
        self.vocab_size = len(vocabulary.texts)
        self._not_text = frozenset(i for i, token_type in enumerate(vocabulary.types) if not token_type.is_text)
        self.special_tokens = dict(vocabulary.special_tokens)
        self.bos_token_id = bos_token_id
        self.eos_token_ids = frozenset(
            [*eos_token_ids, *(token_id for text, token_id in self.special_tokens.items() if text in _END_OF_TURN)]
        )
        self.bos_token = "" if bos_token_id is None else vocabulary.texts[bos_token_id]
        self.eos_token = vocabulary.texts[eos_token_ids[0]] if eos_token_ids else ""
        self.chat_template = chat_template
        self.named_templates = named_templates  # for special purposes, such as tool_use
        self._vocabulary = vocabulary
        self._ordered_eos_token_ids = tuple(eos_token_ids)
        self._prefix_ids, self._suffix_ids = list(prefix_ids), list(suffix_ids)

    def encode(
        self,
        text: str,
        *,
        add_special_tokens: bool = True,
        parse_special: bool = False,
        guard: str = "",
        is_open: bool = False,
    ) -> list[int]:
        """Return the token ids of `text`, after BOS if the model uses it and the text does not begin with it.

        The suffix of the model is added too, unless the text `is_open`: a prompt that an answer continues.
        With `parse_special` the text of a control token becomes that token. `guard` is a character that is removed
        after control tokens were looked for, so it hides the ones it interrupts and changes nothing else.
        Raises Unencodable.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:  # half of a surrogate pair
            raise Unencodable(text[error.start]) from None
        if parse_special:
            token_ids = self._vocabulary.encode_parsed(text, guard)
        else:
            ordinary = text.replace(guard, "") if guard else text
            token_ids = self._vocabulary.encode(ordinary) if ordinary else []
        if not add_special_tokens:
            return token_ids
        prefix, suffix = self._prefix_ids, [] if is_open else self._suffix_ids
        has_prefix = token_ids[: len(prefix)] == prefix
        return [*(() if has_prefix else prefix), *token_ids, *suffix]

    def resized(self, vocab_size: int) -> "Tokenizer":
        """Return a tokenizer with as many tokens as the model has.

        Models often have additional unused tokens, so that their number is round.
        """
        if vocab_size == self.vocab_size:
            return self
        is_bos_kept = self.bos_token_id is not None and self.bos_token_id < vocab_size
        return Tokenizer(
            ResizedVocabulary(self._vocabulary, vocab_size),
            bos_token_id=self.bos_token_id if is_bos_kept else None,
            eos_token_ids=[token_id for token_id in self._ordered_eos_token_ids if token_id < vocab_size],
            prefix_ids=[token_id for token_id in self._prefix_ids if token_id < vocab_size],
            suffix_ids=[token_id for token_id in self._suffix_ids if token_id < vocab_size],
            chat_template=self.chat_template,
            named_templates=self.named_templates,
        )

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes of a token, perhaps a part of a character; for a special token its name."""
        return self._vocabulary.token_bytes[token_id]

    def is_special(self, token_id: int) -> bool:
        """Return whether the token is control, unknown or unused, rather than text."""
        return token_id in self._not_text

    def decode(self, token_ids: Sequence[int], *, skip_special: bool = True) -> str:
        """Return the text that encodes to `token_ids`; the space that encoding put before it is dropped.

        A continuation of other text must keep it: use Detokenizer.
        """
        return "".join(self.texts(token_ids, skip_special=skip_special))

    def texts(self, token_ids: Sequence[int], *, skip_special: bool = True) -> list[str]:
        """Return the characters that each token completes, and last the incomplete ones; joined they are the text."""
        detokenizer = Detokenizer(self, skip_special=skip_special, drops_first_space=self._vocabulary.adds_space_prefix)
        return [*map(detokenizer.push, token_ids), detokenizer.flush()]


def tokenizer_from_gguf(metadata: Mapping[str, object]) -> Tokenizer:
    """Return the tokenizer that the metadata of a GGUF file describe.

    Raises UnsupportedTokenizer or BrokenTokenizer.
    """
    described = gguf_vocabulary(metadata)
    return Tokenizer(
        described.vocabulary,
        bos_token_id=described.bos_token_id,
        eos_token_ids=described.eos_token_ids,
        prefix_ids=described.prefix_ids,
        suffix_ids=described.suffix_ids,
        chat_template=described.chat_template,
        named_templates=described.named_templates,
    )
