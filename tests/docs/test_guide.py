"""The guide: its snippets run, its links and names exist; figures are what their modules draw."""

import ast
import doctest
import re
from pathlib import Path
from types import ModuleType

import pytest

from docs.figures.style import figure_modules, write

pytestmark = pytest.mark.slow

DOCS = Path(__file__).parents[2] / "docs"
GUIDE = DOCS / "llama2-from-scratch.md"


def sections() -> list[str]:
    return re.split(r"^## ", GUIDE.read_text(), flags=re.MULTILINE)[1:]


def test_every_snippet_prints_what_it_says() -> None:
    results = doctest.testfile(str(GUIDE), module_relative=False)
    assert results.failed == 0
    assert results.attempted > 80


@pytest.mark.parametrize("section", sections()[:-1], ids=lambda section: section.split("\n")[0])
def test_every_section_has_a_figure_a_link_into_the_code_and_a_snippet(section: str) -> None:
    assert re.search(r"!\[.+\]\(figures/\w+\.svg\)", section)
    assert re.search(r"\]\(\.\./(model|scheduler)/[\w/]+\.py\)", section)
    assert "\n    >>> " in section


def test_every_link_leads_to_a_file() -> None:
    targets = re.findall(r"\]\((?!https?:)([^)]+)\)", GUIDE.read_text())
    assert len(targets) >= 30
    for target in targets:
        assert (DOCS / target).is_file(), target


def test_every_name_in_the_guide_is_in_the_code() -> None:
    names: set[str] = set()
    for package in ("model", "scheduler"):
        for path in (DOCS.parent / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.FunctionDef | ast.ClassDef):
                    names.add(node.name)
    text = GUIDE.read_text()
    named = re.findall(r"`([A-Z]\w+(?:\.\w+)?|_?[a-z]+(?:_[a-z]+)+)` (?:in|of|is) ", text)
    assert len(named) > 5
    for name in named:
        assert name.rpartition(".")[2] in names, name


@pytest.mark.parametrize("module", figure_modules(), ids=lambda module: module.__name__.rpartition(".")[2])
def test_every_figure_is_what_its_module_draws(module: ModuleType, tmp_path: Path) -> None:
    name = module.__name__.rpartition(".")[2]
    write(module, tmp_path / "drawn.svg")
    assert (tmp_path / "drawn.svg").read_bytes() == (DOCS / "figures" / f"{name}.svg").read_bytes(), (
        "draw the figures again: python -m docs.figures"
    )
    pages = (GUIDE, DOCS.parent / "ARCHITECTURE.md")
    assert any(f"figures/{name}.svg)" in page.read_text() for page in pages)
