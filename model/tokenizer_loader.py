"""Find the tokenizer of a model on disk, with what the files beside it say."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.checkpoint.gguf_header import read_gguf_header
from model.checkpoint.json_file import JsonFile
from model.huggingface_vocabulary import HuggingFaceVocabulary
from model.llama2c_vocabulary import llama2c_vocabulary
from model.sentencepiece_vocabulary import SentencePieceVocabulary
from model.tiktoken_vocabulary import TiktokenVocabulary, is_tiktoken_file
from model.tokenizer import Tokenizer, tokenizer_from_gguf
from model.vocabulary import BrokenTokenizer, UnsupportedTokenizer

_MAX_TEMPLATE_BYTES = 2**20


def load_tokenizer(path: Path) -> Tokenizer:
    """Return the tokenizer in a .gguf file, beside a llama2.c .bin file, or in a folder.

    `path` may also be a tokenizer.json or a tokenizer.model itself.
    Raises OSError, UnsupportedTokenizer, BrokenTokenizer or BrokenCheckpoint.
    """
    if path.suffix == ".gguf":
        return tokenizer_from_gguf(read_gguf_header(path).metadata)
    if path.suffix == ".bin":
        return _with_settings(llama2c_vocabulary(path.with_name("tokenizer.bin")), _Settings())
    settings = _read_settings(path) if path.is_dir() else _Settings()
    tokenizer_json = path / "tokenizer.json" if path.is_dir() else path
    if tokenizer_json.suffix == ".json" and tokenizer_json.is_file():
        return _with_huggingface_settings(HuggingFaceVocabulary(tokenizer_json), settings)
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


@dataclass(frozen=True)
class _Settings:
    """What the small files of a Hugging Face folder say; None and empty where they say nothing."""

    bos_token: str | None = None
    eos_token: str | None = None
    eos_token_ids: tuple[int, ...] = ()
    adds_bos: bool | None = None
    chat_template: str | None = None


def _read_settings(folder: Path) -> _Settings:
    files = {
        name: JsonFile(folder / name) if (folder / name).is_file() else JsonFile(folder / name, {})
        for name in ("special_tokens_map.json", "tokenizer_config.json", "config.json", "generation_config.json")
    }
    config = files["tokenizer_config.json"]
    texts = {
        name: _token_text(config, name) or _token_text(files["special_tokens_map.json"], name)
        for name in ("bos_token", "eos_token")
    }
    return _Settings(
        bos_token=texts["bos_token"],
        eos_token=texts["eos_token"],
        eos_token_ids=_token_ids(files["generation_config.json"]) or _token_ids(files["config.json"]),
        adds_bos=config.flag("add_bos_token", False) if "add_bos_token" in config else None,
        chat_template=_chat_template(folder, config),
    )


def _token_text(fields: JsonFile, name: str) -> str | None:
    """Return a token that is written as a text or as an object with its content."""
    value: Any = fields.raw().get(name)
    if isinstance(value, dict):
        value = value.get("content")
    if value is not None and not isinstance(value, str):
        raise BrokenTokenizer(f"{fields.path}: {name} is {ascii(value)[:40]}; it must be a text.")
    return value


def _token_ids(fields: JsonFile) -> tuple[int, ...]:
    """Return eos_token_id, which is a number or a list of them."""
    value: Any = fields.raw().get("eos_token_id")
    ids = [] if value is None else value if isinstance(value, list) else [value]
    if not all(type(token_id) is int and token_id >= 0 for token_id in ids):
        raise BrokenTokenizer(f"{fields.path}: eos_token_id is {ascii(value)[:40]}; it must be token ids.")
    return tuple(ids)


def _chat_template(folder: Path, config: JsonFile) -> str | None:
    file = folder / "chat_template.jinja"
    if file.is_file():
        if file.stat().st_size > _MAX_TEMPLATE_BYTES:
            raise BrokenTokenizer(f"{file} is larger than {_MAX_TEMPLATE_BYTES} bytes.")
        return file.read_text("utf-8", "replace")
    value: Any = config.raw().get("chat_template")
    if isinstance(value, list):  # several with names
        named = {part.get("name"): part.get("template") for part in value if isinstance(part, dict)}
        value = named.get("default")
    return value if isinstance(value, str) else None


def _with_huggingface_settings(vocabulary: HuggingFaceVocabulary, settings: _Settings) -> Tokenizer:
    ids = {text: token_id for token_id, text in enumerate(vocabulary.texts)}
    bos = ids.get(settings.bos_token) if settings.bos_token is not None else None
    eos = ids.get(settings.eos_token) if settings.eos_token is not None else None
    adds_bos = bos is not None and (vocabulary.adds_bos(bos) if settings.adds_bos is None else settings.adds_bos)
    return Tokenizer(
        vocabulary,
        bos_token_id=bos,
        eos_token_ids=_eos_token_ids(eos, settings, len(vocabulary.texts)),
        adds_bos=adds_bos,
        chat_template=settings.chat_template,
    )


def _with_settings(vocabulary: SentencePieceVocabulary | TiktokenVocabulary, settings: _Settings) -> Tokenizer:
    """Return the tokenizer of a file that does not say whether BOS belongs before a text; Llamas want it."""
    return Tokenizer(
        vocabulary,
        bos_token_id=vocabulary.bos_token_id,
        eos_token_ids=_eos_token_ids(vocabulary.eos_token_id, settings, len(vocabulary.texts)),
        adds_bos=vocabulary.bos_token_id is not None and settings.adds_bos is not False,
        chat_template=settings.chat_template,
    )


def _eos_token_ids(first: int | None, settings: _Settings, num_tokens: int) -> list[int]:
    """Return the EOS token, then those that end an answer, too."""
    ids = [] if first is None else [first]
    return [*ids, *(token_id for token_id in settings.eos_token_ids if token_id not in ids and token_id < num_tokens)]
