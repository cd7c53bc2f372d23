"""The glossary: its terms are in order, each once, and the file of each uses the term."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
ROW = re.compile(r"^\| ([^|`]+) \| `([^`]+)` \| (.+) \|$", re.MULTILINE)
STEM_LENGTH = 4  # letters, so that "preempted" counts as a use of "preemption"


def rows() -> list[tuple[str, str, str]]:
    """Return the terms with their files and meanings."""
    return ROW.findall((ROOT / "docs" / "glossary.md").read_text("utf-8"))


def test_there_are_forty_terms_in_order_each_once() -> None:
    terms = [term.lower() for term, _, _ in rows()]
    assert len(terms) >= 40
    assert terms == sorted(set(terms))


def test_the_file_of_each_term_uses_its_words() -> None:
    for term, file, _ in rows():
        code = (ROOT / file).read_text("utf-8").lower()
        for word in re.findall(r"[a-z]+", term.lower()):
            assert word[:STEM_LENGTH] in code, (term, file)


def test_each_meaning_is_a_sentence() -> None:
    assert all(meaning.endswith(".") for _, _, meaning in rows())
