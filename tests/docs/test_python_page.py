"""docs/python.md and the README: their examples of the Python class run as they stand, one after another."""

import inspect
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from caravan import LLM

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.mark.real_model
@pytest.mark.parametrize(("page", "num_examples"), [("docs/python.md", 6), ("README.md", 1)])
def test_the_examples_run(page: str, num_examples: int, real_model_path: Path) -> None:
    blocks = [block for block in BLOCK.findall((ROOT / page).read_text("utf-8")) if "OpenAI" not in block]
    assert len(blocks) == num_examples
    # In a function, where `await` may stand; in a process of its own, as programs run.
    program = "import asyncio\nasync def main():\n" + textwrap.indent("\n".join(blocks), "    ") + "asyncio.run(main())"
    command = [sys.executable, "-W", "error", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Paris" in done.stdout


def test_every_option_is_named() -> None:
    text = (ROOT / "docs/python.md").read_text("utf-8")
    for name in set(inspect.signature(LLM).parameters) - {"model"}:
        assert f"`{name}`" in text
