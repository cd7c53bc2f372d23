"""TokenizerSettings: the tokenizer settings in the JSON files of a Hugging Face folder.

If two files disagree, the one that transformers 5 uses is used, and a warning names both.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import AddedToken

from caravan.model.checkpoint.json_file import JsonFile, log_disagreement
from caravan.model.tokenizer.vocabulary import BrokenTokenizer

_MAX_TEMPLATE_BYTES = 2**20
_MAX_TEMPLATES = 64
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TokenizerSettings:
    """Settings besides the vocabulary; None or empty where the files do not state them."""

    bos_token: str | None = None
    eos_token: str | None = None
    eos_token_ids: tuple[int, ...] = ()
    adds_bos: bool | None = None
    adds_eos: bool | None = None
    added_tokens: tuple[AddedToken, ...] = ()
    chat_template: str | None = None
    named_templates: Mapping[str, str] = field(default_factory=dict)  # for special purposes, such as tool_use


def read_tokenizer_settings(folder: Path) -> TokenizerSettings:
    """Return the settings of a folder; raises OSError, BrokenTokenizer or BrokenCheckpoint."""
    config = _read(folder / "tokenizer_config.json")
    generation, model = _read(folder / "generation_config.json"), _read(folder / "config.json")
    templates = _templates(folder, config)
    return TokenizerSettings(
        bos_token=_special_token(folder, config, "bos_token"),
        eos_token=_special_token(folder, config, "eos_token"),
        eos_token_ids=_token_ids(generation, model, "eos_token_id"),
        adds_bos=config.flag("add_bos_token", False) if "add_bos_token" in config else None,
        adds_eos=config.flag("add_eos_token", False) if "add_eos_token" in config else None,
        added_tokens=_added_tokens(config),
        chat_template=templates.pop("default", None),
        named_templates=templates,
    )


def _read(path: Path) -> JsonFile:
    return JsonFile(path) if path.is_file() else JsonFile(path, {})


def _special_token(folder: Path, config: JsonFile, name: str) -> str | None:
    """Return a special token's text: special_tokens_map.json is read only if there is no added_tokens_decoder."""
    stated = _token_text(config, name)
    if "added_tokens_decoder" in config.raw():
        return stated
    older = _read(folder / "special_tokens_map.json")
    if name not in older.raw():
        return stated
    text = _token_text(older, name)
    if stated is not None and text != stated:
        log_disagreement(f"{name} in {older.path}", text, f"{name} in {config.path.name}", stated)
    return text


def _token_text(fields: JsonFile, name: str) -> str | None:
    """Return a token that is written as a text or as an object with its content."""
    value: Any = fields.raw().get(name)
    if isinstance(value, dict):
        value = value.get("content")
    if value is not None and not isinstance(value, str):
        raise BrokenTokenizer(f"{fields.path}: {name} is {ascii(value)[:40]}; it must be a text.")
    return value


def _token_ids(generation: JsonFile, model: JsonFile, name: str) -> tuple[int, ...]:
    """Return the ids of a field that is a number or a list of them; generation_config.json takes precedence."""
    found = []
    for fields in (generation, model):
        value: Any = fields.raw().get(name)
        ids = [] if value is None else value if isinstance(value, list) else [value]
        if not all(type(token_id) is int and token_id >= 0 for token_id in ids):
            raise BrokenTokenizer(f"{fields.path}: {name} is {ascii(value)[:40]}; it must be token ids.")
        found.append(tuple(ids))
    if all(found) and set(found[0]) != set(found[1]):
        log_disagreement(f"{name} in {generation.path}", list(found[0]), f"{name} in {model.path.name}", list(found[1]))
    return found[0] or found[1]


def _added_tokens(config: JsonFile) -> tuple[AddedToken, ...]:
    """Return the tokens of added_tokens_decoder in the order of their ids."""
    decoder = config.part("added_tokens_decoder")
    tokens: dict[int, AddedToken] = {}
    for token_id, token in {} if decoder is None else decoder.raw().items():
        content = token.get("content") if isinstance(token, dict) else None
        if not token_id.isdecimal() or not isinstance(content, str):
            raise BrokenTokenizer(f"{config.path}: added_tokens_decoder has {ascii(token_id)[:40]} without a content.")
        flags = {name: token[name] for name in _FLAGS if name in token}
        if not all(isinstance(flag, bool) for flag in flags.values()):
            raise BrokenTokenizer(f"{config.path}: a flag of the added token {ascii(content)[:40]} is not a boolean.")
        tokens[int(token_id)] = AddedToken(content, **flags)
    return tuple(tokens[token_id] for token_id in sorted(tokens))


def _templates(folder: Path, config: JsonFile) -> dict[str, str]:
    """Return the chat templates by name; separate files take precedence over tokenizer_config.json."""
    value: Any = config.raw().get("chat_template")
    if isinstance(value, list):
        stated = {part.get("name"): part.get("template") for part in value[:_MAX_TEMPLATES] if isinstance(part, dict)}
    else:
        stated = {"default": value}
    in_config = {name: text for name, text in stated.items() if isinstance(name, str) and isinstance(text, str)}
    files = sorted((folder / "additional_chat_templates").glob("*.jinja"))[:_MAX_TEMPLATES]
    if (folder / "chat_template.jinja").is_file():
        files.append(folder / "chat_template.jinja")
    if not files:
        return in_config
    in_files = {"default" if path.parent == folder else path.name.removesuffix(".jinja"): path for path in files}
    templates = {name: _template(path) for name, path in in_files.items()}
    if other := [name for name, text in in_config.items() if templates.get(name, text) != text]:
        log_disagreement(
            f"The chat template in {in_files[other[0]]}",
            templates[other[0]],
            f"that in {config.path.name}",
            in_config[other[0]],
        )
    if "default" not in templates and "default" in in_config:
        templates["default"] = in_config["default"]
    return templates


def _template(path: Path) -> str:
    if path.stat().st_size > _MAX_TEMPLATE_BYTES:
        raise BrokenTokenizer(f"{path} is larger than {_MAX_TEMPLATE_BYTES} bytes.")
    return path.read_text("utf-8", "replace")
