#!/usr/bin/env bash
# tokenizers 0.23.1: the `id` of an entry in `added_tokens` of a tokenizer.json is not what the token gets.
#
# Expected: a file that says {"id": 900, "content": "<end>"} gives <end> the id 900, or is refused: weights have a row for each id.
# Seen:     the file loads without a warning, and <end> gets the next free id behind the vocabulary.
# So:       a reader that takes ids from the file differs from the library; it has to compare them and say so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip install --quiet --disable-pip-version-check tokenizers==0.23.1
env/bin/python - <<'PYTHON'
import json
import sys

import tokenizers
from tokenizers import Tokenizer

FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
FILE = {
    "version": "1.0",
    "added_tokens": [{"id": 900, "content": "<end>", **FLAGS}],
    "model": {"type": "WordLevel", "vocab": {"a": 0, "b": 1, "?": 2}, "unk_token": "?"},
}
found = Tokenizer.from_str(json.dumps(FILE)).token_to_id("<end>")
print("tokenizers", tokenizers.__version__)
print(f"the file says 900: expected 900 or an error, seen {found}")
sys.exit(found != 3 and "The behaviour has changed.")
PYTHON
