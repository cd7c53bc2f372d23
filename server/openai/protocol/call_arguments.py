"""The arguments of a call in an earlier message: a text that should be a JSON object and may be anything."""

import json
import math
from collections.abc import Collection
from typing import Any, NoReturn

from caravan.server.openai.protocol.fields import check_depth
from caravan.server.sandbox.special_tokens import Json, all_keys


def parsed_arguments(text: str, special_tokens: Collection[str] = ()) -> dict[str, Json] | None:
    """Return the object that the arguments of a call are, None if they are not one that can go into a prompt as such.

    An object whose keys have the text of a special token cannot: only values are guarded against it.
    """
    if not text.strip():
        return {}
    try:
        value: Any = json.loads(text, parse_constant=_refuse, parse_float=_finite)
        if value is None:
            return {}
        if not isinstance(value, dict):
            return None
        check_depth(value)
        json.dumps(value, ensure_ascii=False).encode()  # fails for half of a surrogate pair
    except (ValueError, RecursionError):
        return None
    has_special = any(special in key for key in all_keys(value) for special in special_tokens)
    return None if has_special else value


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError
    return value


def _refuse(_: str) -> NoReturn:
    raise ValueError
