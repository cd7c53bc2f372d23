"""Sections of a page of Markdown: a heading of the second level and what follows until the next one.

Several commands write sections of one page; each keeps those of the others.
"""

from collections.abc import Sequence


def find_section(page: str, heading: str) -> str:
    """Return the section of that heading, with the heading; empty if the page has none."""
    start = f"\n{page}".find(f"\n## {heading}\n")
    if start < 0:
        return ""
    end = page.find("\n## ", start + 1)
    return page[start:] if end < 0 else page[start : end + 1]


def with_section(page: str, heading: str, body: str) -> str:
    """Return the page with the body under that heading, in the place of the section or at the end.

    An empty body leaves the page as it is.
    """
    if not body:
        return page
    section, old = f"## {heading}\n\n{body.strip()}\n", find_section(page, heading)
    if not old:
        return f"{page.rstrip()}\n\n{section}"
    return page.replace(old, section if page.endswith(old) else f"{section}\n")


def section_body(page: str, heading: str) -> str:
    """Return what a page has under that heading; empty if it has none."""
    return find_section(page, heading).removeprefix(f"## {heading}\n").strip()


def with_sections_of(page: str, old: str, headings: Sequence[str]) -> str:
    """Return the page with those sections of an old page under these headings."""
    for heading in headings:
        page = with_section(page, heading, section_body(old, heading))
    return page
