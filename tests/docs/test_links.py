"""Documents: every link between them, and every path that they name, leads to a file or a folder of this repository."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted(
    path.relative_to(ROOT)
    for pattern in ("*.md", "docs/**/*.md", "docker/*.md", "benchmarks/peers.md")
    for path in ROOT.glob(pattern)
)
FOLDERS = ("benchmarks", "caravan", "docker", "docs", "findings", "model", "scheduler", "server", "tests")
LINK = re.compile(r"""(?:\]\(|src(?:set)?=")(?!https?:|mailto:)([^)"\s]+)[)"]""")
NAMED = re.compile(rf"`((?:{'|'.join(FOLDERS)})/[\w./-]*)`")
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def anchors(text: str) -> set[str]:
    """Return the anchors of a document's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken(text: str, folder: Path) -> list[str]:
    """Return the links and paths of a document in `folder` that lead nowhere."""
    found = [path for path in NAMED.findall(text) if not (ROOT / path).exists()]
    for target in LINK.findall(text):
        name, _, anchor = target.partition("#")
        page = folder / name
        is_there = page.exists() if name else True
        headings = (page.read_text("utf-8") if name else text) if is_there and anchor else ""
        if not is_there or (anchor and anchor not in anchors(headings)):
            found.append(target)
    return found


@pytest.mark.parametrize("document", DOCUMENTS, ids=str)
def test_links_and_paths_lead_somewhere(document: Path) -> None:
    assert broken((ROOT / document).read_text("utf-8"), (ROOT / document).parent) == []


def test_a_moved_file_is_found() -> None:
    assert broken('[a](no/such.md) and `server/no_such.py`, `model/nothing/`, <img src="no.png">', ROOT) == [
        "server/no_such.py",
        "model/nothing/",
        "no/such.md",
        "no.png",
    ]
    assert broken("# Title\n[a](#no-title) [b](#title) [c](README.md) `server/app.py` `org/name`", ROOT) == [
        "#no-title"
    ]


def test_every_page_is_reached_from_the_readme() -> None:
    reached, new = set(), [ROOT / "README.md"]
    while new:
        page = new.pop()
        if page in reached or page.suffix != ".md" or not page.is_file():
            continue
        reached.add(page)
        new += [(page.parent / target.partition("#")[0]).resolve() for target in LINK.findall(page.read_text("utf-8"))]
    assert {path for path in DOCUMENTS if ROOT / path not in reached} == set()


def test_every_decision_is_in_the_index() -> None:
    folder = ROOT / "docs" / "decisions"
    index = (folder / "README.md").read_text("utf-8")
    pages = sorted(path for path in folder.glob("*.md") if path.name != "README.md")
    for number, page in enumerate(pages, start=1):
        text = page.read_text("utf-8")
        title = text.partition("\n")[0].removeprefix("# ")
        assert f"- [{number:04}]({page.name}) {title}\n" in index
        for part in ("\n**Context.** ", "\n**Choice.** ", "\n**Price.** "):
            assert text.count(part) == 1, page.name
