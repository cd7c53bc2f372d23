"""The files of the page: what they come with, and what they do not load."""

import re
from pathlib import Path

from tests.server.openai.api import open_api


async def test_the_page_comes_without_a_key_under_a_strict_policy() -> None:
    async with open_api() as api:
        for path, kind in (("/", "text/html"), ("/web/main.js", "text/javascript"), ("/web/style.css", "text/css")):
            response = await api.http.get(path)
            assert response.status_code == 200
            assert response.headers["content-type"].startswith(kind)
            policy = response.headers["content-security-policy"]
            assert policy.startswith("default-src 'none'")
            assert "unsafe" not in policy
            assert "http" not in policy
        for path in ("/web/none.js", "/web/../app.py", "/web/%2e%2e%2fapp.py", "/web/index.html/x"):
            assert (await api.http.get(path)).status_code == 404


def test_the_page_loads_nothing_from_elsewhere() -> None:
    for file in (Path(__file__).parents[2] / "server" / "web").iterdir():
        assert not re.search(r"(?:https?:)?//[a-z0-9-]+\.[a-z]", file.read_text("utf-8")), file
