"""The page at /: a few files as they are, under a policy that lets nothing in from elsewhere."""

from importlib.resources import files

from fastapi import APIRouter, Response

from server.openai.errors import ApiError

PAGE = "index.html"
_TYPES = {"html": "text/html; charset=utf-8", "css": "text/css; charset=utf-8", "js": "text/javascript; charset=utf-8"}
_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}


def page_router() -> APIRouter:
    """Return the routes of the page's files. They hold no secrets: the page asks for a key where one is needed."""
    router = APIRouter(tags=["page"])
    folder = files("server") / "web"
    contents = {
        file.name: (file.read_bytes(), _TYPES[kind])
        for file in folder.iterdir()
        if (kind := file.name.rpartition(".")[2]) in _TYPES
    }

    def answer(name: str) -> Response:
        if name not in contents:
            raise ApiError(404, "There is no such file.")
        content, media_type = contents[name]
        return Response(content, headers=_HEADERS, media_type=media_type)

    @router.get("/", summary="The page: chat, and the engine live", response_class=Response, include_in_schema=False)
    async def page() -> Response:
        return answer(PAGE)

    @router.get("/web/{name}", summary="Its parts", response_class=Response, include_in_schema=False)
    async def part(name: str) -> Response:
        return answer(name)

    return router
