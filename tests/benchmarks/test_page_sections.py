"""Sections of a page that several commands write."""

from pathlib import Path

from benchmarks.comparison_page import KEPT_HEADINGS
from benchmarks.page_sections import section_body, with_section, with_sections_of

PAGE = "# Page\n\ntext\n\n## One\n\nfirst\n\n### part of one\n\nmore\n\n## Two\n\nsecond\n"


def test_a_section_ends_at_the_next_of_its_level() -> None:
    assert section_body(PAGE, "One") == "first\n\n### part of one\n\nmore"
    assert section_body(PAGE, "Two") == "second"
    assert section_body(PAGE, "Three") == section_body(PAGE, "part of one") == ""


def test_a_section_is_replaced_in_its_place() -> None:
    assert with_section(PAGE, "One", "new\n") == "# Page\n\ntext\n\n## One\n\nnew\n\n## Two\n\nsecond\n"
    assert with_section(PAGE, "Two", "new") == PAGE.replace("second", "new")


def test_a_new_section_stands_at_the_end() -> None:
    assert with_section(PAGE, "Three", "third") == f"{PAGE}\n## Three\n\nthird\n"
    assert with_section(PAGE, "Three", "") == PAGE
    assert section_body(with_section("# Page\n", "Three", "third"), "Three") == "third"


def test_sections_of_an_old_page_are_kept_in_the_order_of_the_headings() -> None:
    assert with_sections_of("# New\n", PAGE, ("Two", "Three", "One")) == (
        "# New\n\n## Two\n\nsecond\n\n## One\n\nfirst\n\n### part of one\n\nmore\n"
    )


def test_the_page_of_benchmarks_has_the_sections_that_its_writer_keeps() -> None:
    page = (Path(__file__).parents[2] / "docs" / "benchmarks.md").read_text()
    assert all(section_body(page, heading) for heading in KEPT_HEADINGS)
