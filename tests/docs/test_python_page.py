"""docs/python.md and the README: their examples of the Python class run as they stand, one after another."""

import ast
import inspect
import re
from pathlib import Path
from typing import Any

import pytest

from caravan import LLM

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def examples(page: str) -> list[str]:
    return [block for block in BLOCK.findall((ROOT / page).read_text("utf-8")) if "OpenAI" not in block]


@pytest.mark.real_model
@pytest.mark.parametrize("page", ["docs/python.md", "README.md"])
async def test_the_examples_run(page: str, real_model_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    blocks = examples(page)
    assert blocks
    names: dict[str, Any] = {}
    for block in blocks:
        code = compile(block, page, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        result = eval(code, names)
        if inspect.isawaitable(result):
            await result
    names["llm"].close()
    assert "Paris" in capsys.readouterr().out


def test_every_option_is_named() -> None:
    text = (ROOT / "docs/python.md").read_text("utf-8")
    for name in set(inspect.signature(LLM).parameters) - {"model"}:
        assert f"`{name}`" in text
