#!/usr/bin/env bash
# llguidance 1.9.1: integers of a JSON schema that a float64 does not hold become other integers.
#
# Expected: {"const": 1234567890123456789} allows exactly that number, or the schema is refused: JSON Schema has no limit of
#           53 bits, Python's json module keeps the digits, and identifiers of real services have 19 of them.
# Seen:     the schema compiles without an error or a warning. The grammar refuses the number and allows its neighbour ...768 instead.
#           `enum` does the same, and a range from 9007199254740993 lets 9007199254740992 through.
# So:       keep such numbers out of the schema (write them as literals of the grammar), or refuse them.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip install --quiet --disable-pip-version-check llguidance==1.9.1 numpy==2.3.5
env/bin/python - <<'PYTHON'
import json
import sys
from importlib.metadata import version

from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper


class Bytes:
    """A vocabulary of the 256 bytes and an end."""

    eos_token_id = 256
    bos_token_id = None
    special_token_ids = (256,)
    tokens = (*(bytes([byte]) for byte in range(256)), b"</s>")

    def __call__(self, text):
        return list(text.encode() if isinstance(text, str) else text)


tokenizer = LLTokenizer(TokenizerWrapper(Bytes()), slices=[])


def allows(schema, text):
    matcher = LLMatcher(tokenizer, LLMatcher.grammar_from_json_schema(json.dumps(schema)), log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    return matcher.try_consume_tokens(list(text.encode())) == len(text) and matcher.is_accepting()


RANGE = {"type": "integer", "minimum": 9007199254740993, "maximum": 9007199254740999}
CASES = [  # schema, text, what JSON Schema says, what was seen
    ({"const": 1234567890123456789}, "1234567890123456789", True, False),
    ({"const": 1234567890123456789}, "1234567890123456768", False, True),
    ({"enum": [1234567890123456789]}, "1234567890123456768", False, True),
    (RANGE, "9007199254740992", False, True),
    ({"const": 9007199254740991}, "9007199254740991", True, True),  # the largest below 2**53 is exact
]
print("llguidance", version("llguidance"))
changed = False
for schema, text, expected, seen in CASES:
    found = allows(schema, text)
    changed |= found != seen
    print(f"{json.dumps(schema)} and {text}: expected {expected}, seen {found}")
sys.exit(changed and "The behaviour has changed.")
PYTHON
