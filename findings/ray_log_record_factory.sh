#!/usr/bin/env bash
# ray 2.60.0: `import ray` changes the log records of every logger of the process.
#
# Expected: a library configures its own loggers only.
# Seen:     it replaces the factory of log records, and every record, of any logger, gets an attribute `_ray_timestamp_ns`.
# So:       a formatter that prints the extra attributes of records has to leave it out (server/observe/logs.py).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip install --quiet --disable-pip-version-check ray==2.60.0
env/bin/python - 2> /dev/null <<'PYTHON'
import logging
import sys


def attributes() -> set[str]:
    return vars(logging.getLogger("application").makeRecord("application", 20, "file", 1, "text", (), None)).keys()


before = {*attributes()}
import ray  # noqa: E402

added = {*attributes()} - before
print("ray", ray.__version__)
print(f"attributes of a record after `import ray`: expected no others, seen {sorted(added)}")
if changed := added != {"_ray_timestamp_ns"}:
    print("The behaviour has changed.")
sys.exit(changed)
PYTHON
