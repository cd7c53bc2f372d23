"""Load the tokenizer of a model on disk, with the settings in the files next to it."""

import logging
from pathlib import Path

from caravan.model.checkpoint.gguf_header import read_gguf_header
from caravan.model.tokenizer.huggingface_vocabulary import HuggingFaceVocabulary
from caravan.model.tokenizer.llama2c_vocabulary import llama2c_vocabulary
from caravan.model.tokenizer.sentencepiece_vocabulary import SentencePieceVocabulary
from caravan.model.tokenizer.settings import TokenizerSettings, read_tokenizer_settings
from caravan.model.tokenizer.tiktoken_vocabulary import TiktokenVocabulary, is_tiktoken_file
from caravan.model.tokenizer.tokenizer import Tokenizer, tokenizer_from_gguf
from caravan.model.tokenizer.vocabulary import UnsupportedTokenizer

logger = logging.getLogger(__name__)


def load_tokenizer(path: Path) -> Tokenizer:
    """Return the tokenizer in a .gguf file, beside a llama2.c .bin file, or in a folder.

    `path` may also be a tokenizer.json or a tokenizer.model itself.
    Raises OSError, UnsupportedTokenizer, BrokenTokenizer or BrokenCheckpoint.
    """
    if path.suffix == ".gguf":
        return tokenizer_from_gguf(read_gguf_header(path).metadata)
    if path.suffix == ".bin":
        return _with_settings(llama2c_vocabulary(path.with_name("tokenizer.bin")), TokenizerSettings())
    settings = read_tokenizer_settings(path) if path.is_dir() else TokenizerSettings()
    tokenizer_json = path / "tokenizer.json" if path.is_dir() else path
    if tokenizer_json.suffix == ".json" and tokenizer_json.is_file():
        return _with_huggingface_settings(tokenizer_json, settings)
    tokenizer_model = path / "tokenizer.model" if path.is_dir() else path
    if tokenizer_model.suffix == ".model" and (path.is_file() or tokenizer_model.is_file()):
        if (path / "added_tokens.json").is_file():
            raise UnsupportedTokenizer(
                f"{path} adds tokens to its tokenizer.model. Make a tokenizer.json of them first, with transformers."
            )
        if is_tiktoken_file(tokenizer_model):
            return _with_settings(TiktokenVocabulary(tokenizer_model), settings)
        return _with_settings(SentencePieceVocabulary(tokenizer_model.read_bytes()), settings)
    raise UnsupportedTokenizer(
        f"{path} has no tokenizer; supported are a .gguf file, or a folder with a tokenizer.json or a tokenizer.model."
    )


def _with_huggingface_settings(path: Path, settings: TokenizerSettings) -> Tokenizer:
    """Return the tokenizer of a tokenizer.json; its post-processor has the tokens before and after a text."""
    vocabulary = HuggingFaceVocabulary(path, settings.added_tokens)
    ids = {text: token_id for token_id, text in enumerate(vocabulary.texts)}
    bos = ids.get(settings.bos_token) if settings.bos_token is not None else None
    eos = ids.get(settings.eos_token) if settings.eos_token is not None else None
    for name, wanted, token_id, added in (
        ("add_bos_token", settings.adds_bos, bos, vocabulary.prefix_ids),
        ("add_eos_token", settings.adds_eos, eos, vocabulary.suffix_ids),
    ):
        if wanted is not None and wanted != (token_id in added):
            logger.warning(
                "%s adds the tokens %s, but tokenizer_config.json has %s: %s, which is ignored.",
                path,
                ascii(added)[:80],
                name,
                wanted,
            )
    return Tokenizer(
        vocabulary,
        bos_token_id=bos,
        eos_token_ids=_eos_token_ids(eos, settings, len(vocabulary.texts)),
        prefix_ids=vocabulary.prefix_ids,
        suffix_ids=vocabulary.suffix_ids,
        chat_template=settings.chat_template,
        named_templates=settings.named_templates,
    )


def _with_settings(vocabulary: SentencePieceVocabulary | TiktokenVocabulary, settings: TokenizerSettings) -> Tokenizer:
    """Return the tokenizer of a file that does not state whether BOS comes before a text; Llama models use it."""
    bos, eos = vocabulary.bos_token_id, vocabulary.eos_token_id
    return Tokenizer(
        vocabulary,
        bos_token_id=bos,
        eos_token_ids=_eos_token_ids(eos, settings, len(vocabulary.texts)),
        prefix_ids=[] if bos is None or settings.adds_bos is False else [bos],
        suffix_ids=[] if eos is None or not settings.adds_eos else [eos],
        chat_template=settings.chat_template,
        named_templates=settings.named_templates,
    )


def _eos_token_ids(first: int | None, settings: TokenizerSettings, num_tokens: int) -> list[int]:
    """Return the EOS token, then the other tokens that end an answer."""
    ids = [] if first is None else [first]
    return [*ids, *(token_id for token_id in settings.eos_token_ids if token_id not in ids and token_id < num_tokens)]
