"""The files of the web pages: headers, links and origins."""

import hashlib
import json
import re
from pathlib import Path

import pytest

from caravan.server.operations.guide import anchor_of, guide_page
from tests.server.openai.api import open_api

ROOT = Path(__file__).parents[3]
WEB = ROOT / "server/web"


async def test_the_page_is_public_with_a_strict_content_security_policy() -> None:
    async with open_api() as api:
        for path, kind in (
            ("/", "text/html"),
            ("/docs", "text/html"),
            ("/web/main.js", "text/javascript"),
            ("/web/style.css", "text/css"),
            ("/web/chat/view.js", "text/javascript"),
            ("/web/vendor/marked/marked.esm.js", "text/javascript"),
        ):
            response = await api.http.get(path, headers={"accept": "text/html, */*"})
            assert response.status_code == 200
            assert response.headers["content-type"].startswith(kind)
            policy = response.headers["content-security-policy"]
            assert policy.startswith("default-src 'none'")
            assert "unsafe" not in policy
            assert "http" not in policy
            assert policy.endswith("require-trusted-types-for 'script'")  # innerHTML and the like raise
        for path in (
            "/web/none.js",
            "/web/chat",
            "/web/vendor/pinned.json",
            "/web/vendor/marked/LICENSE",
            "/web/../app.py",
            "/web/%2e%2e%2fapp.py",
            "/web/index.html/x",
        ):
            assert (await api.http.get(path)).status_code == 404


def test_the_page_loads_nothing_from_other_origins() -> None:
    for file in own_files():
        assert not re.search(r"(?:https?:)?//[a-z0-9-]+\.[a-z]", file.read_text("utf-8")), file


def test_no_script_parses_markup() -> None:
    for file in own_files():
        text = file.read_text("utf-8")
        found = re.search(
            r"innerHTML|outerHTML|insertAdjacentHTML|DOMParser|document\.write|\beval\b|new Function", text
        )
        assert not found, file


def test_files_are_small_and_their_lines_short() -> None:
    for file in own_files():
        lines = file.read_text("utf-8").splitlines()
        assert len(lines) <= 300, file
        assert max(map(len, lines)) <= 120, file


def own_files() -> list[Path]:
    """Return the files of the pages, without those of other projects."""
    files = [file for kind in ("html", "css", "js") for file in WEB.rglob(f"*.{kind}") if "vendor" not in file.parts]
    assert len(files) > 30
    return files


def test_files_of_other_projects_are_those_that_were_published() -> None:
    """`appended` is what we added at the end of each file of a package."""
    pinned = json.loads((WEB / "vendor/pinned.json").read_text())
    listed = {f"{folder}/{name}" for folder, package in pinned.items() for name in package["files"]}
    assert listed == {str(file.relative_to(WEB / "vendor")) for file in (WEB / "vendor").glob("*/*.js")}
    for folder, package in pinned.items():
        assert (WEB / "vendor" / folder / "LICENSE").stat().st_size > 500
        for name, digest in package["files"].items():
            content = (WEB / "vendor" / folder / name).read_bytes()
            appended = package.get("appended", "").encode()
            assert content.endswith(appended)
            published = content.removesuffix(appended) if appended else content
            assert hashlib.sha256(published).hexdigest() == digest, name


@pytest.mark.parametrize(
    ("accepted", "encoding"),
    [
        ("gzip, deflate, br", "gzip"),
        ("br;q=1.0, gzip;q=0.5", "gzip"),
        ("*", "gzip"),
        ("identity", None),
        ("gzip;q=0", None),
        ("gzip; q=0.000, br", None),
        ("", None),
    ],
)
async def test_files_are_compressed_for_clients_that_accept_it(accepted: str, encoding: str | None) -> None:
    async with open_api() as api:
        response = await api.http.get("/web/theme.css", headers={"accept-encoding": accepted})
        assert response.headers.get("content-encoding") == encoding
        assert response.text == (WEB / "theme.css").read_text("utf-8")
        assert response.headers["vary"] == "accept, accept-encoding"
        size = int(response.headers["content-length"])
        assert size < 2500 if encoding else size == (WEB / "theme.css").stat().st_size
        small = await api.http.get("/web/saved_theme.js", headers={"accept-encoding": accepted})
        assert "content-encoding" not in small.headers


async def test_a_file_that_a_browser_has_is_not_sent_again() -> None:
    async with open_api() as api:
        etags = set()
        for accepted in ("gzip", "identity"):
            headers = {"accept-encoding": accepted}
            first = await api.http.get("/web/main.js", headers=headers)
            etags.add(first.headers["etag"])
            for known, status in (
                (first.headers["etag"], 304),
                (f'"other", W/{first.headers["etag"]}', 304),
                ('"other"', 200),
            ):
                again = await api.http.get("/web/main.js", headers=headers | {"if-none-match": known})
                assert again.status_code == status
                assert again.headers["etag"] == first.headers["etag"]
                assert again.content == (b"" if status == 304 else first.content)
        assert len(etags) == 2


async def test_every_explanation_links_to_a_chapter_of_the_guide() -> None:
    lessons = (ROOT / "server/web/engine/lessons.js").read_text()
    chapters = set(re.findall(r'"(\d+\. [^"]+)"', lessons))
    assert len(chapters) > 2
    async with open_api() as api:
        guide = (await api.http.get("/web/llama2-from-scratch.html")).text
    for chapter in chapters:
        assert f'<h2 id="{anchor_of(chapter)}">{chapter}</h2>' in guide


async def test_the_guide_has_all_chapters_local_figures_and_valid_links() -> None:
    text = (ROOT / "docs/llama2-from-scratch.md").read_text("utf-8")
    async with open_api() as api:
        page = await api.http.get("/web/llama2-from-scratch.html")
        assert page.headers["content-type"] == "text/html; charset=utf-8"
        assert page.text.count('<svg role="img" aria-label="') == text.count("![")
        assert page.text.count("<details><summary>") == text.count("<details>") == 3 * 21
        assert "<style" not in page.text  # the policy would block it
        figure = await api.http.get("/web/rope.svg")
        assert (figure.status_code, figure.headers["content-type"]) == (200, "image/svg+xml")
    links = set(re.findall(r'href="([^":#]+)', page.text))
    code = {link for link in links if link.startswith("/web/code/")}
    assert links - code == {"/web/theme.css", "/web/style.css", "/", "https", "data"}
    wanted = set(re.findall(r"\]\(\.\./([a-z_/]+\.py)\)", text))
    assert {link.removeprefix("/web/code/") for link in code} == wanted
    assert len(wanted) > 20
    assert "&lt;script" not in page.text
    assert page.text.count("<h2 ") == page.text.count("<li><a href") == 22


async def test_no_link_of_the_guide_is_dead() -> None:
    async with open_api() as api:
        page = (await api.http.get("/web/llama2-from-scratch.html", headers={"accept": "text/html"})).text
        targets = re.findall(r"<a\b([^>]*)>", page)
        assert len(targets) > 50
        for attributes in targets:
            found = re.search(r'href="([^"]+)"', attributes)
            assert found, f"<a{attributes}> leads nowhere"
            target = found[1]
            if target.startswith("#"):
                assert page.count(f' id="{target[1:]}"') == 1, target
            elif not target.startswith("https://"):
                assert (await api.http.get(target, headers={"accept": "text/html"})).status_code == 200, target
    assert "llama2-from-scratch.ipynb" in page  # not served, so it is named without a link


def test_markup_in_the_guide_is_text() -> None:
    page = guide_page(
        "# A <b>title</b>\n\n<script>alert(1)</script> [x](javascript:alert(1)) "
        "[y](../model/llama.py) [z](../Makefile)",
        read_figure=str,
    )
    assert '<h1 id="a-btitleb">A &lt;b&gt;title' in page
    assert "<script>" not in page
    assert 'href="javascript' not in page
    assert '<a href="/web/code/model/llama.py" class="code-link">y</a>' in page
    assert "</a> z</p>" in page
