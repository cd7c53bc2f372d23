"""The web pages: static files and the guide, with a content security policy for this origin only."""

import gzip
import hashlib
import re
from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import NamedTuple

from fastapi import APIRouter, Request, Response

from caravan.server.http.errors import ApiError
from caravan.server.operations.guide import guide_page

PAGE = "index.html"
DOCS = "docs.html"
GUIDE = "llama2-from-scratch"
OLLAMA_PROBE = "Ollama is running"  # what Ollama's clients expect at /; browsers ask for HTML
_TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
_LINKS = re.compile(r'(?<=")/(?=(?:web|v1)/|openapi\.json"|docs"|">)')  # absolute paths in pages and scripts
_MIN_GZIP_BYTES = 500  # smaller files fit into one packet anyway
_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
    "vary": "accept, accept-encoding",
}


class _Content(NamedTuple):
    """A file as it is sent."""

    plain: bytes
    compressed: bytes | None  # gzip; None where that saves nothing
    etag: str


def page_router(root_path: str = "") -> APIRouter:
    """Return the routes of the pages, whose links begin with `root_path`.

    They are public: the pages ask for a key where the API needs one.
    """
    router = APIRouter(tags=["page"])
    folder = files("caravan.server") / "web"
    parts = dict(_files(folder))

    @cache  # at most one entry per file
    def content(name: str) -> _Content:
        if name == f"{GUIDE}.html":
            plain = prefixed(
                guide_page((folder / f"{GUIDE}.md").read_text("utf-8"), lambda name: parts[name].read_text("utf-8"))
            ).encode()
        elif _kind(name) == "svg" or name.startswith("vendor/"):
            plain = parts[name].read_bytes()
        else:
            plain = prefixed(parts[name].read_text("utf-8")).encode()
        compressed = gzip.compress(plain, mtime=0) if len(plain) >= _MIN_GZIP_BYTES else None
        return _Content(plain, compressed, hashlib.sha256(plain).hexdigest()[:20])

    def prefixed(text: str) -> str:
        return _LINKS.sub(f"{root_path}/", text) if root_path else text

    async def respond(name: str, request: Request) -> Response:
        if name not in parts and name != f"{GUIDE}.html":
            raise ApiError(404, "There is no such file.")
        plain, compressed, etag = content(name)
        headers = dict(_HEADERS)
        if compressed is not None and _accepts_gzip(request.headers.get("accept-encoding", "")):
            headers |= {"content-encoding": "gzip", "etag": f'"{etag}-gzip"'}
            body = compressed
        else:
            headers["etag"] = f'"{etag}"'
            body = plain
        known = (one.strip().removeprefix("W/") for one in request.headers.get("if-none-match", "").split(","))
        if headers["etag"] in known:
            headers.pop("content-encoding", None)
            return Response(status_code=304, headers=headers)
        return Response(body, headers=headers, media_type=_TYPES[_kind(name)])

    def page_at(path: str, name: str) -> None:
        async def page(request: Request) -> Response:
            if name == PAGE and "text/html" not in request.headers.get("accept", ""):
                return Response(OLLAMA_PROBE, headers={"vary": "accept"}, media_type="text/plain")
            return await respond(name, request)

        router.add_api_route(path, page, methods=["GET", "HEAD"], response_class=Response, include_in_schema=False)

    page_at("/", PAGE)  # the chat and the other views
    page_at("/docs", DOCS)  # the API reference
    router.add_api_route(
        "/web/{name:path}", respond, methods=["GET", "HEAD"], response_class=Response, include_in_schema=False
    )
    return router


def _files(folder: Traversable, prefix: str = "") -> Iterator[tuple[str, Traversable]]:
    """Yield the name of each file that is served, such as "chat/view.js", and the file.

    Figures of the guide have no folder in their names, as the guide's links have none.
    """
    for file in folder.iterdir():
        if file.is_dir():
            yield from _files(file, "" if file.name == "figures" else f"{prefix}{file.name}/")
        elif _kind(file.name) in _TYPES:
            yield prefix + file.name, file


def _accepts_gzip(header: str) -> bool:
    """Return whether an Accept-Encoding header allows gzip."""
    for part in header.lower().split(","):
        name, _, weight = part.partition(";")
        if name.strip() in ("gzip", "*"):
            return re.fullmatch(r"\s*q\s*=\s*0(\.0*)?\s*", weight) is None
    return False


def _kind(name: str) -> str:
    return name.rpartition(".")[2]
