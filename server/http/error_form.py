"""ErrorForm: how an API writes its errors."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from starlette.types import Scope

if TYPE_CHECKING:  # it imports this module
    from caravan.server.http.errors import ApiError

SCOPE_FORM = "caravan.error_form"  # ASGI scope: the ErrorForm of the request's API, absent for OpenAI's


@dataclass(frozen=True, kw_only=True)
class ErrorForm:
    """How another API than OpenAI's writes its errors, and which requests are its own.

    Errors arise before a request is routed, too, so its path and its headers decide.
    """

    body: Callable[["ApiError", str], dict[str, Any]]  # of an error and a request id
    paths: tuple[str, ...]  # beginnings of its paths, each with a slash at its end
    shared_paths: tuple[str, ...] = ()  # of the requests with `header` only
    header: bytes = b""
    id_header: bytes = b""  # of its responses, beside `x-request-id`

    def is_of(self, scope: Scope) -> bool:
        """Return whether a request belongs to this API."""
        path = f"{scope['path']}/"
        is_shared = path.startswith(self.shared_paths) and any(name == self.header for name, _ in scope["headers"])
        return is_shared or path.startswith(self.paths)
