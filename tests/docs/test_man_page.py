"""The man page is what its generator writes, and roff reads it without a warning."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from caravan.cli.main import make_app
from caravan.cli.serve_options import serve_options
from docs.man_page import man_page

PAGE = Path(__file__).parents[2] / "docs" / "caravan.1"


@pytest.fixture(scope="module")
def written() -> str:
    return man_page()


def test_the_page_is_what_its_generator_writes(written: str) -> None:
    assert PAGE.read_text("utf-8") == written, "run python -m docs.man_page > docs/caravan.1"


def test_every_command_has_a_section(written: str) -> None:
    commands: Any = get_command(make_app())
    sections = re.findall(r'^\.SS "caravan (\w+) ', written, flags=re.MULTILINE)
    assert sorted(sections) == sorted(commands.commands)


def test_every_option_of_serve_has_an_entry(written: str) -> None:
    entries = [line.replace("\\-", "-") for line in written.splitlines() if line.startswith(".B ")]
    for option in serve_options():
        assert f".B {option.usage}" in entries
    assert {".B --print-config", ".B --version", ".B --concurrency <str>"} <= set(entries)


@pytest.mark.skipif(shutil.which("groff") is None, reason="groff is not installed")
def test_the_page_is_read_without_warnings(written: str) -> None:
    command = ["groff", "-man", "-Tascii", "-ww", "-rLL=78n"]
    shown = subprocess.run(command, input=written, capture_output=True, text=True, check=True)
    assert shown.stderr == ""
    assert len(shown.stdout.splitlines()) > 300
