"""Guide: docs/llama2-from-scratch.md as a page of this server, linked from the lessons."""

import re
from collections.abc import Callable
from html import escape

from markdown_it import MarkdownIt
from markdown_it.token import Token

from caravan.server.operations.source_code import FILES

_FRAME = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Llama 2 from scratch</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="/web/theme.css">
<link rel="stylesheet" href="/web/style.css">
<script src="/web/saved_theme.js"></script>
<script type="module" src="/web/guide.js"></script>
</head>
<body>
<p><a href="/">Back to the chat</a></p>
<div class="guide">
<nav aria-label="Chapters">
<ul>
{}</ul>
</nav>
<main>
{}</main>
</div>
</body>
</html>
"""


_STYLE = re.compile(r"<style>.*?</style>\n?", re.DOTALL)  # the page has these rules
_QUESTION = re.compile(r"<p>&lt;details&gt;&lt;summary&gt;(.*?)&lt;/summary&gt;(.*?)&lt;/details&gt;</p>", re.DOTALL)


def guide_page(text: str, read_figure: Callable[[str], str]) -> str:
    """Convert the guide from Markdown to HTML; `read_figure` returns the SVG of a figure's file name.

    Headings get the anchors that links in the repository use, and a list of chapters links to them. Figures stand in
    the page, so that they have its colours. Links to source files that this server shows lead there, and guide.js opens
    them in place; the text of other links into the repository stands without a link.
    """
    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = parser.parse(text)
    for index, token in enumerate(tokens):
        if token.type == "heading_open":
            token.attrSet("id", anchor_of(tokens[index + 1].content))
        _rewrite(token.children or [], read_figure)
    chapters = [
        tokens[index + 1].content
        for index, token in enumerate(tokens)
        if token.type == "heading_open" and token.tag == "h2"
    ]
    links = "".join(f'<li><a href="#{anchor_of(chapter)}">{escape(chapter)}</a></li>\n' for chapter in chapters)
    body = parser.renderer.render(tokens, parser.options, {})
    body = body.replace("<pre>", '<pre tabindex="0">')  # so that a keyboard can scroll it
    return _FRAME.format(links, _QUESTION.sub(r"<details><summary>\1</summary>\2</details>", body))


def anchor_of(heading: str) -> str:
    """Return the anchor of a heading: lower case, hyphens for spaces, no punctuation."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def _rewrite(tokens: list[Token], read_figure: Callable[[str], str]) -> None:
    """Rewrite the figures and links in a line of text."""
    is_link_kept = True
    for token in tokens:
        if token.type == "image":
            figure = _STYLE.sub("", read_figure(str(token.attrGet("src")).removeprefix("figures/")))
            named = f'<svg role="img" aria-label="{escape(token.content)}" '
            token.type, token.content = "html_inline", figure.replace("<svg ", named, 1)
        elif token.type == "link_open":
            target = str(token.attrGet("href"))
            path = target.removeprefix("../")
            if path in FILES:
                token.attrs = {"href": f"/web/code/{path}", "class": "code-link"}
            is_link_kept = path in FILES or target.startswith(("https://", "#"))
            token.hidden = not is_link_kept
        elif token.type == "link_close":
            token.hidden = not is_link_kept
