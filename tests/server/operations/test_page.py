"""The files of the web pages: headers, links and origins."""

import re
from pathlib import Path

from caravan.server.operations.guide import anchor_of, guide_page
from tests.server.openai.api import open_api

ROOT = Path(__file__).parents[3]


async def test_the_page_is_public_with_a_strict_content_security_policy() -> None:
    async with open_api() as api:
        for path, kind in (
            ("/", "text/html"),
            ("/docs", "text/html"),
            ("/web/main.js", "text/javascript"),
            ("/web/style.css", "text/css"),
        ):
            response = await api.http.get(path)
            assert response.status_code == 200
            assert response.headers["content-type"].startswith(kind)
            policy = response.headers["content-security-policy"]
            assert policy.startswith("default-src 'none'")
            assert "unsafe" not in policy
            assert "http" not in policy
        for path in ("/web/none.js", "/web/../app.py", "/web/%2e%2e%2fapp.py", "/web/index.html/x"):
            assert (await api.http.get(path)).status_code == 404


def test_the_page_loads_nothing_from_other_origins() -> None:
    files = [file for kind in ("html", "css", "js") for file in (ROOT / "server/web").glob(f"*.{kind}")]
    assert len(files) > 6
    for file in files:
        assert not re.search(r"(?:https?:)?//[a-z0-9-]+\.[a-z]", file.read_text("utf-8")), file


async def test_every_explanation_links_to_a_chapter_of_the_guide() -> None:
    lessons = (ROOT / "server/web/lessons.js").read_text()
    chapters = set(re.findall(r'"(\d+\. [^"]+)"', lessons))
    assert len(chapters) > 2
    async with open_api() as api:
        guide = (await api.http.get("/web/llama2-from-scratch.html")).text
    for chapter in chapters:
        assert f'<h2 id="{anchor_of(chapter)}">{chapter}</h2>' in guide


async def test_the_guide_has_all_chapters_local_figures_and_valid_links() -> None:
    async with open_api() as api:
        page = await api.http.get("/web/llama2-from-scratch.html")
        assert page.headers["content-type"] == "text/html; charset=utf-8"
        figures = re.findall(r'<img src="([^"]+)"', page.text)
        assert len(figures) == (ROOT / "docs/llama2-from-scratch.md").read_text().count("![")
        for figure in figures:
            answer = await api.http.get(figure)
            assert (answer.status_code, answer.headers["content-type"]) == (200, "image/svg+xml")
    assert set(re.findall(r'href="([^":#]+)', page.text)) == {"/web/style.css", "/", "https", "data"}
    assert "&lt;script" not in page.text
    assert page.text.count("<h2 ") == 11


def test_markup_in_the_guide_is_text() -> None:
    page = guide_page("# A <b>title</b>\n\n<script>alert(1)</script> [x](javascript:alert(1)) [y](../model/llama.py)")
    assert '<h1 id="a-btitleb">A &lt;b&gt;title' in page
    assert "<script>" not in page
    assert 'href="javascript' not in page
    assert "<a>y</a>" in page
