"""The web pages: static files and the guide, with a content security policy for this origin only."""

from functools import cache
from importlib.resources import files

from fastapi import APIRouter, Response

from caravan.server.http.errors import ApiError
from caravan.server.operations.guide import guide_page

PAGE = "index.html"
DOCS = "docs.html"
GUIDE = "llama2-from-scratch"
_TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}


def page_router() -> APIRouter:
    """Return the routes of the pages. They are public: the pages ask for a key where the API needs one."""
    router = APIRouter(tags=["page"])
    folder = files("caravan.server") / "web"
    parts = {file.name: file for file in folder.iterdir() if _kind(file.name) in ("html", "css", "js")}
    parts |= {file.name: file for file in (folder / "figures").iterdir() if _kind(file.name) == "svg"}

    @cache  # at most one entry per file
    def content(name: str) -> bytes:
        if name == f"{GUIDE}.html":
            return guide_page((folder / f"{GUIDE}.md").read_text("utf-8")).encode()
        return parts[name].read_bytes()

    async def respond(name: str) -> Response:
        if name not in parts and name != f"{GUIDE}.html":
            raise ApiError(404, "There is no such file.")
        return Response(content(name), headers=_HEADERS, media_type=_TYPES[_kind(name)])

    def page_at(path: str, name: str) -> None:
        async def page() -> Response:
            return await respond(name)

        router.add_api_route(path, page, methods=["GET", "HEAD"], response_class=Response, include_in_schema=False)

    page_at("/", PAGE)  # the playground: chat and live view
    page_at("/docs", DOCS)  # the API reference
    router.add_api_route(
        "/web/{name}", respond, methods=["GET", "HEAD"], response_class=Response, include_in_schema=False
    )
    return router


def _kind(name: str) -> str:
    return name.rpartition(".")[2]
