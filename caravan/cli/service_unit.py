"""The unit of a systemd service, with the command of this installation."""

import sys
from importlib.resources import files
from pathlib import Path

PACKAGED_COMMAND = "/opt/caravan/bin/caravan"  # in the packaged unit, and in docs/operations.md


def service_unit() -> str:
    """Return the packaged unit with the absolute path of this installation's command."""
    text = files("caravan.cli").joinpath("caravan.service").read_text("utf-8")
    script = Path(sys.executable).with_name("caravan")
    command = str(script) if script.is_file() else f"{sys.executable} -m caravan"
    return text.replace(PACKAGED_COMMAND, command)
