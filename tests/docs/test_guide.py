"""The guide: its snippets run, its links and names exist; figures are what their modules draw."""

import ast
import doctest
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from docs.figures.drawing import TEXT_SIZE, TINT, WIDTH
from docs.figures.drawn import figure_modules, write
from docs.figures.sentence import NEEDS_MODEL

pytestmark = pytest.mark.slow

DOCS = Path(__file__).parents[2] / "docs"
GUIDE = DOCS / "llama2-from-scratch.md"


def sections() -> list[str]:
    return re.split(r"^## ", GUIDE.read_text(), flags=re.MULTILINE)[1:]


@pytest.mark.real_model
def test_every_snippet_prints_what_it_says() -> None:
    results = doctest.testfile(str(GUIDE), module_relative=False, encoding="utf-8")
    assert results.failed == 0
    assert results.attempted > 120


@pytest.mark.parametrize("section", sections()[:-1], ids=lambda section: section.split("\n")[0])
def test_every_section_has_a_figure_a_link_into_the_code_and_a_snippet(section: str) -> None:
    assert re.search(r"!\[.+\]\(figures/\w+\.svg\)", section)
    assert re.search(r"\]\(\.\./(model|scheduler)/[\w/]+\.py\)", section)
    assert "\n    >>> " in section
    assert section.count("<details><summary>") == section.count("</summary>") == section.count("</details>") == 3


def test_the_guide_imports_only_what_is_installed() -> None:
    modules = re.findall(r"^    >>> (?:from|import) (\w+)", GUIDE.read_text(), flags=re.MULTILINE)
    assert len(modules) > 10
    assert set(modules) <= {"caravan", "dataclasses", "math", "msgspec", "numpy", "torch"}


def test_every_link_leads_to_a_file() -> None:
    targets = re.findall(r"\]\((?!https?:)([^)]+)\)", GUIDE.read_text())
    assert len(targets) >= 30
    for target in targets:
        assert (DOCS / target).is_file(), target


def test_every_name_in_the_guide_is_in_the_code() -> None:
    names: set[str] = set()
    for package in ("model", "scheduler", "server"):
        for path in (DOCS.parent / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.FunctionDef | ast.ClassDef):
                    names.add(node.name)
    text = GUIDE.read_text()
    named = re.findall(r"`([A-Z]\w+(?:\.\w+)?|_?[a-z]+(?:_[a-z]+)+)` (?:in|of|is) ", text)
    assert len(named) > 5
    for name in named:
        assert name.rpartition(".")[2] in names, name


def test_every_name_in_the_guide_is_defined_in_the_file_that_is_linked_beside_it() -> None:
    named = re.findall(r"`([\w.]+)`\s+in\s+\[[^\]]+\]\(\.\./([\w/]+\.py)\)", GUIDE.read_text())
    assert len(named) > 12
    for name, path in named:
        last = name.rpartition(".")[2]
        pattern = rf"^ *(?:(?:(?:async )?def|class) {last}\b|{last}(?::| =))"  # as server/web/guide.js finds it
        assert re.search(pattern, (DOCS.parent / path).read_text(), re.MULTILINE), (name, path)


def test_text_of_every_figure_is_readable_on_phones_and_in_both_themes() -> None:
    paths = sorted((DOCS / "figures").glob("*.svg"))
    assert len(paths) == 27
    for path in paths:
        svg = path.read_text("utf-8")
        assert f'width="{WIDTH * 1.4:g}"' in svg  # a column of 358 pixels shows 13 units as 13 pixels
        assert re.findall(r'font-size="(\d+)"', svg) == [str(TEXT_SIZE)]
        assert not re.search(r"<text[^>]*fill", svg)  # it has the colour of the page's text
        assert TINT <= 0.25


def module_param(module: ModuleType) -> Any:
    name = module.__name__.rpartition(".")[2]
    return pytest.param(module, id=name, marks=[pytest.mark.real_model] if name in NEEDS_MODEL else [])


@pytest.mark.parametrize("module", [module_param(module) for module in figure_modules()])
def test_every_figure_is_what_its_module_draws(module: ModuleType, tmp_path: Path) -> None:
    name = module.__name__.rpartition(".")[2]
    write(module, tmp_path / "drawn.svg")
    assert (tmp_path / "drawn.svg").read_bytes() == (DOCS / "figures" / f"{name}.svg").read_bytes(), (
        "draw the figures again: python -m docs.figures"
    )
    pages = (GUIDE, DOCS.parent / "ARCHITECTURE.md")
    assert any(f"figures/{name}.svg)" in page.read_text() for page in pages)
