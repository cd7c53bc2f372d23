"""Facts that two files of a folder state: what transformers takes is taken, and one line names both."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import transformers

from caravan.model.checkpoint import BrokenCheckpoint
from caravan.model.checkpoint.folder_links import check_links
from caravan.model.tokenizer.loader import load_tokenizer
from caravan.model.tokenizer.tokenizer import Tokenizer
from caravan.model.tokenizer.vocabulary import BrokenTokenizer
from tests.support.tokenizer_files import byte_level_json, write

GENERIC = {"tokenizer_class": "PreTrainedTokenizerFast"}


def opened(folder: Path, files: dict[str, Any]) -> tuple[Tokenizer, Any]:
    """Write a folder and return what we and what transformers make of it; fields of JSON files, or text."""
    byte_level_json().save(str(folder / "tokenizer.json"))
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return load_tokenizer(folder), transformers.AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("in_config", [{"bos_token": "<s>", "eos_token": "</s>"}, {"eos_token": "</s>"}])
@pytest.mark.parametrize("decoder", [{}, {"added_tokens_decoder": {"500": {"content": "<s>", "special": True}}}])
def test_special_tokens_are_those_of_transformers(
    tmp_path: Path, in_config: dict[str, str], decoder: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    names = {"bos_token": "<|im_start|>", "eos_token": {"content": "<|im_end|>"}}
    files = {"tokenizer_config.json": GENERIC | in_config | decoder, "special_tokens_map.json": names}
    ours, theirs = opened(tmp_path, files)
    assert ours.bos_token == (theirs.bos_token or "")
    assert ours.eos_token == theirs.eos_token
    logged = [record for record in caplog.records if "special_tokens_map.json" in record.getMessage()]
    assert len(logged) == (0 if decoder else len(in_config))


CONFIG_LIST = [{"name": "default", "template": "A"}, {"name": "tool_use", "template": "B"}]


@pytest.mark.parametrize(
    ("files", "is_logged"),
    [
        ({"tokenizer_config.json": GENERIC | {"chat_template": "A"}}, False),
        ({"tokenizer_config.json": GENERIC | {"chat_template": CONFIG_LIST}}, False),
        ({"tokenizer_config.json": GENERIC | {"chat_template": CONFIG_LIST}, "chat_template.jinja": "C"}, True),
        ({"tokenizer_config.json": GENERIC | {"chat_template": "C"}, "chat_template.jinja": "C"}, False),
        ({"tokenizer_config.json": GENERIC | {"chat_template": "A"}, "chat_template.jinja": "C"}, True),
        (
            {
                "tokenizer_config.json": GENERIC | {"chat_template": CONFIG_LIST},
                "chat_template.jinja": "C",
                "additional_chat_templates/tool_use.jinja": "D",
                "additional_chat_templates/rag.jinja": "E",
            },
            True,
        ),
        ({"tokenizer_config.json": GENERIC, "additional_chat_templates/tool_use.jinja": "D"}, False),
    ],
)
def test_templates_are_those_of_transformers(
    tmp_path: Path, files: dict[str, Any], is_logged: bool, caplog: pytest.LogCaptureFixture
) -> None:
    ours, theirs = opened(tmp_path, files)
    expected = theirs.chat_template if isinstance(theirs.chat_template, dict) else {"default": theirs.chat_template}
    assert ours.chat_template == expected.pop("default", None)
    assert ours.named_templates == expected
    assert ("The chat template in" in caplog.text) == is_logged


@pytest.mark.parametrize(
    ("generation", "model", "ids", "is_logged"),
    [
        ({"eos_token_id": [501]}, {"eos_token_id": 502}, {501}, True),
        ({"eos_token_id": [501, 502]}, {"eos_token_id": [502, 501]}, {501, 502}, False),
        ({}, {"eos_token_id": 502}, {502}, False),
        ({"eos_token_id": 501}, {}, {501}, False),
    ],
)
def test_eos_ids_are_those_of_the_generation_config(
    tmp_path: Path,
    generation: dict[str, Any],
    model: dict[str, Any],
    ids: set[int],
    is_logged: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    (tmp_path / "config.json").write_text(json.dumps(model))
    ours = write(tmp_path, byte_level_json(), bos_token=None, eos_token=None)
    names = {text for text, token_id in ours.special_tokens.items() if token_id in ours.eos_token_ids}
    assert ids <= ours.eos_token_ids
    assert names <= {"<s>", "</s>", "<|im_start|>", "<|im_end|>"}
    logged = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert ["eos_token_id in" in record.getMessage() for record in logged] == [True] * is_logged


@pytest.mark.parametrize(
    ("decoder", "words"),
    [
        ({"x": {"content": "a"}}, "added_tokens_decoder has 'x'"),
        ({"7": "a"}, "added_tokens_decoder has '7' without a content"),
        ({"7": {"content": "a", "lstrip": 1}}, "a flag of the added token 'a' is not a boolean"),
    ],
)
def test_added_tokens_of_another_form_are_refused(tmp_path: Path, decoder: dict[str, Any], words: str) -> None:
    with pytest.raises(BrokenTokenizer, match=words):
        write(tmp_path, byte_level_json(), added_tokens_decoder=decoder)


def test_threat_25_a_named_template_that_links_out_of_its_folder_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    (folder / "additional_chat_templates").mkdir(parents=True)
    (tmp_path / "secret.jinja").write_text("secret")
    (folder / "additional_chat_templates" / "tool_use.jinja").symlink_to(tmp_path / "secret.jinja")
    with pytest.raises(BrokenCheckpoint, match="a link out of its folder"):
        check_links(folder)
