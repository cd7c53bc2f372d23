"""The page of options is what the settings say."""

from pathlib import Path

from caravan.cli.serve_options import serve_options
from docs.options import options_page

DOCS = Path(__file__).parents[2] / "docs"


def test_the_page_is_what_its_generator_writes() -> None:
    assert (DOCS / "options.md").read_text() == options_page(), "run python -m docs.options > docs/options.md"


def test_the_page_has_a_row_for_each_option() -> None:
    rows = [line for line in options_page().splitlines() if line.startswith("| `")]
    assert len(rows) == len(serve_options())
    for row, option in zip(rows, serve_options(), strict=True):
        assert row.count(" | ") == 4
        assert row.startswith(f"| `{option.flag}` | `{option.variable}` |")
