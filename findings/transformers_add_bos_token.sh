#!/usr/bin/env bash
# transformers 5.24.0: `add_bos_token` of tokenizer_config.json does nothing where the folder has a tokenizer.json.
#
# Expected: a folder whose tokenizer_config.json says `"add_bos_token": true` puts BOS before every text, as the option is described.
# Seen:     the post-processor of tokenizer.json alone decides: without one no BOS is added, with one it is, whatever the option says,
#           and nothing warns that the two files disagree.
# So:       take BOS from the post-processor, and log a line when the option says otherwise.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip install --quiet --disable-pip-version-check transformers==5.24.0
env/bin/python - 2> /dev/null <<'PYTHON'
import json
import sys
from pathlib import Path

import transformers
from transformers import AutoTokenizer

BOS = {"id": 0, "content": "<s>", "special": True, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
ADDS_BOS = {
    "type": "TemplateProcessing",
    "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
    "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}},
}
print("transformers", transformers.__version__)
changed = False
for option, post_processor in [(True, None), (False, ADDS_BOS)]:
    file = {
        "version": "1.0",
        "added_tokens": [BOS],
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": post_processor,
        "model": {"type": "WordLevel", "vocab": {"<s>": 0, "a": 1, "?": 2}, "unk_token": "?"},
    }
    Path("tokenizer.json").write_text(json.dumps(file))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "add_bos_token": option}
    Path("tokenizer_config.json").write_text(json.dumps(settings))
    ids = AutoTokenizer.from_pretrained(".")("a").input_ids
    expected, seen = ([0, 1], [1]) if option else ([1], [0, 1])
    changed |= ids != seen
    print(f"add_bos_token {option}, post-processor {'with BOS' if post_processor else 'absent'}: expected {expected}, seen {ids}")
if changed:
    print("The behaviour has changed.")
sys.exit(changed)
PYTHON
