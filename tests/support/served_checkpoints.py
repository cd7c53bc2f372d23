"""Checkpoints that a server can load."""

import json
from pathlib import Path

from tests.server.openai.api import CHAT_ML
from tests.support.tokenizer_files import byte_level_json
from tests.support.transformers_models import random_model


def huggingface(folder: Path) -> Path:
    """More words than tokens, as many models have; a template, and a default temperature of 0."""
    folder = folder / "Tiny-Qwen-0.5B"
    random_model("Qwen2", vocab_size=640).save_pretrained(folder)
    byte_level_json().save(str(folder / "tokenizer.json"))
    settings = {"eos_token": "<|im_end|>", "chat_template": CHAT_ML}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "generation_config.json").write_text(json.dumps({"temperature": 0.0}))
    return folder
