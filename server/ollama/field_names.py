"""Field names in errors and warnings about the equivalent request, as Ollama's clients know them."""

from collections.abc import Mapping

from caravan.server.http.errors import ApiError

_OPTION = "options.num_predict"
CHAT_NAMES = {"json_schema": "format", "max_completion_tokens": _OPTION, "max_tokens": _OPTION}
GENERATE_NAMES = {**CHAT_NAMES, "messages": "prompt"}
EMBEDDING_NAMES = {"input": "prompt"}


def renamed_error(error: ApiError, names: Mapping[str, str]) -> ApiError:
    """Return an error with Ollama's name of its field."""
    param = error.param or ""
    old = next((name for name in names if param.startswith(name)), "")
    if not old:
        return error
    message = error.message.replace(f"`{old}", f"`{names[old]}", 1)
    return ApiError(error.status, message, param=names[old] + param.removeprefix(old), code=error.code)


def renamed_warnings(warnings: list[str]) -> list[str]:
    """Return warnings with Ollama's names.

    Those about the names of tools are left out: a name says which call a message is the result of.
    """
    return [
        warning.replace("`json_schema`", "`format`").replace("`messages[].reasoning_content`", "`messages[].thinking`")
        for warning in warnings
        if not warning.startswith("`messages[].name`")
    ]
