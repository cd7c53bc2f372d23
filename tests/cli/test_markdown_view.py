"""Markdown in a terminal: complete blocks are printed once, the last one is redrawn."""

import io

import pytest
from rich.console import Console

from caravan.cli.markdown_view import MarkdownView, split_last_block

TEXT = """\
# Title

A *paragraph* of
two lines.

1. one
2. two

   more of two

| a | b |
|---|---|
| 1 | 2 |

```python
x = 1

y = [link](http://example.org)
```

[link](http://example.org) [red]markup[/red] :smile:
"""


def drawn(pieces: list[str], *, height: int = 24, is_terminal: bool = False) -> str:
    file = io.StringIO()
    console = Console(
        file=file,
        width=60,
        height=height,
        force_terminal=is_terminal,
        color_system=None,
        markup=False,
        emoji=False,
        highlight=False,
    )
    view = MarkdownView(console, clock=iter(range(10_000)).__next__)
    for piece in pieces:
        view.write(piece)
    view.close()
    return file.getvalue()


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_a_text_is_drawn_in_the_same_way_however_it_is_cut(size: int) -> None:
    pieces = [TEXT[start : start + size] for start in range(0, len(TEXT), size)]
    assert [*filter(str.strip, drawn(pieces).splitlines())] == [*filter(str.strip, drawn([TEXT]).splitlines())]


def test_blocks_are_drawn_and_nothing_in_them_is_markup_of_the_terminal() -> None:
    text = drawn([TEXT])
    for part in (
        "Title",
        "A paragraph of two lines.",
        " 2 two",
        "x = 1",
        "http://example.org",
        "[red]markup[/red] :smile:",
    ):
        assert part in text
    assert "*" not in text
    assert "\x1b" not in text


def test_every_block_but_the_last_is_complete() -> None:
    blocks, rest, whole = [], "", ""
    for character in TEXT:
        complete, rest = split_last_block(rest + character)
        whole += character
        if complete:
            blocks.append(complete)
        assert "".join(blocks) + rest == whole
    assert [block.split()[0] for block in blocks] == ["#", "A", "1.", "|", "```python"]


def test_a_block_longer_than_the_terminal_is_drawn_whole_at_its_end() -> None:
    lines = [f"- item {number}\n" for number in range(50)]
    text = drawn(lines, height=10, is_terminal=True)
    last = text.rpartition("\x1b[?25h")[2]  # where the cursor comes back
    assert [f"item {number}\n" in last.replace(" \n", "\n") or f"item {number} " in last for number in range(50)] == [
        True
    ] * 50
    assert all(frame.count("item") <= 8 for frame in text.rpartition("\x1b[?25h")[0].split("\x1b[2K\x1b[1A"))


def test_an_answer_without_text_leaves_nothing() -> None:
    assert drawn([]) == ""
    assert drawn(["  \n"]).strip() == ""
