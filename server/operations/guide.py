"""Guide: docs/llama2-from-scratch.md as a page of this server, linked from the lessons."""

import re

from markdown_it import MarkdownIt
from markdown_it.token import Token

_FRAME = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Llama 2 from scratch</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="/web/style.css">
</head>
<body>
<p><a href="/">Back to the playground</a></p>
<main class="guide">
{}</main>
</body>
</html>
"""


def guide_page(text: str) -> str:
    """Convert the guide from Markdown to HTML.

    Headings get the anchors that links in the repository use, and figures come from this server. Links into the source
    code become plain text.
    """
    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = parser.parse(text)
    for index, token in enumerate(tokens):
        if token.type == "heading_open":
            token.attrSet("id", anchor_of(tokens[index + 1].content))
        for child in token.children or []:
            _rewrite(child)
    return _FRAME.format(parser.renderer.render(tokens, parser.options, {}))


def anchor_of(heading: str) -> str:
    """Return the anchor of a heading: lower case, hyphens for spaces, no punctuation."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def _rewrite(token: Token) -> None:
    if token.type == "image":
        token.attrSet("src", "/web/" + str(token.attrGet("src")).removeprefix("figures/"))
    elif token.type == "link_open" and not str(token.attrGet("href")).startswith(("https://", "#")):
        token.attrs = {}
