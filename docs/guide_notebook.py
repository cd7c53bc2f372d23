"""`python -m docs.guide_notebook`: write the guide as a notebook, from the same text."""

import doctest
import json
import re
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
GUIDE, NOTEBOOK = DOCS / "llama2-from-scratch.md", DOCS / "llama2-from-scratch.ipynb"
_SNIPPET = re.compile(r"(?:^ {4}.*\n|^\n(?= {4}))+", re.MULTILINE)  # indented lines
_PROMPT = "    >>> "


def cells(text: str) -> list[tuple[str, str]]:
    """Return the cells of the guide in their order: "markdown" or "code", and the text.

    A snippet becomes one cell of code, without its prompts and without what it prints.
    """
    found: list[tuple[str, str]] = []
    end = 0
    for snippet in _SNIPPET.finditer(text):
        if _PROMPT not in snippet[0]:
            continue
        found.append(("markdown", text[end : snippet.start()].strip()))
        examples = doctest.DocTestParser().get_examples(snippet[0])
        found.append(("code", "".join(example.source for example in examples).strip()))
        end = snippet.end()
    found.append(("markdown", text[end:].strip()))
    return [(kind, cell) for kind, cell in found if cell]


def notebook(text: str) -> str:
    """Return the file of the notebook, without outputs."""
    written: list[dict[str, Any]] = []
    for number, (kind, cell) in enumerate(cells(text)):
        one: dict[str, Any] = {
            "cell_type": kind,
            "id": f"cell-{number}",
            "metadata": {},
            "source": cell.splitlines(keepends=True),
        }
        if kind == "code":
            one |= {"execution_count": None, "outputs": []}
        written.append(dict(sorted(one.items())))
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    document = {"cells": written, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    NOTEBOOK.write_text(notebook(GUIDE.read_text("utf-8")), "utf-8")
