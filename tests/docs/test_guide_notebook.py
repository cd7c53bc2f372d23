"""The guide's notebook: made from the guide, with the code that the guide's test runs."""

import ast
import doctest

import nbformat

from docs.guide_notebook import GUIDE, NOTEBOOK, cells, notebook


def test_the_notebook_is_made_from_the_guide() -> None:
    nbformat.validate(nbformat.reads(NOTEBOOK.read_text("utf-8"), as_version=4))
    assert NOTEBOOK.read_text("utf-8") == notebook(GUIDE.read_text("utf-8")), (
        "write the notebook again: python -m docs.guide_notebook"
    )


def test_its_code_is_all_that_the_test_of_the_guide_runs() -> None:
    text = GUIDE.read_text("utf-8")
    code = "\n".join(cell for kind, cell in cells(text) if kind == "code")
    examples = "".join(example.source for example in doctest.DocTestParser().get_examples(text))
    assert ast.dump(ast.parse(code)) == ast.dump(ast.parse(examples))


def test_indented_text_without_a_prompt_stays_text() -> None:
    assert cells("Shapes:\n\n    x  [T]\n\nCode:\n\n    >>> 1 + 1\n    2\n\nEnd.\n") == [
        ("markdown", "Shapes:\n\n    x  [T]\n\nCode:"),
        ("code", "1 + 1"),
        ("markdown", "End."),
    ]
