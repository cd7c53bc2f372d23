#!/usr/bin/env bash
# transformers 5.24.0: where a config.json has both `rope_parameters` and the older `rope_scaling`, the older one wins whole.
#
# Expected: `rope_parameters` is what version 5 writes and documents, so a leftover `rope_scaling` beside it is ignored, or at most
#           fills in what is missing, or the disagreement is an error.
# Seen:     `rope_scaling` replaces `rope_parameters` silently, and the base frequency of `rope_parameters` goes with it: a
#           model trained with theta 500000 is run with the default of 10000. A leftover `rope_theta` alone changes nothing.
# So:       a loader that wants the numbers of transformers has to do the same, and should log that the two disagree.
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
from transformers import AutoConfig

BASE = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 64, "num_hidden_layers": 1}
BASE |= {"num_attention_heads": 2, "intermediate_size": 64, "vocab_size": 100}
NEW = {"rope_type": "linear", "factor": 4.0, "rope_theta": 500000.0}
OLD = {"rope_type": "linear", "factor": 2.0}
CASES = [  # older keys beside NEW; what was seen of (factor, theta)
    ({}, (4.0, 500000.0)),
    ({"rope_theta": 20000.0}, (4.0, 500000.0)),
    ({"rope_scaling": OLD}, (2.0, 10000.0)),
]
print("transformers", transformers.__version__)
changed = False
for older, seen in CASES:
    Path("config.json").write_text(json.dumps(BASE | {"rope_parameters": NEW} | older))
    rope = AutoConfig.from_pretrained(".").rope_parameters
    found = (rope["factor"], rope["rope_theta"])
    changed |= found != seen
    print(f"rope_parameters {NEW} beside {older}: expected factor and theta (4.0, 500000.0), seen {found}")
if changed:
    print("The behaviour has changed.")
sys.exit(changed)
PYTHON
