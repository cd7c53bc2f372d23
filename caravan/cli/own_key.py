"""The API key that Caravan's commands send to a server."""

import os


def own_key() -> str | None:
    """Return the first key of the variable CARAVAN_API_KEY, None if there is none."""
    return os.environ.get("CARAVAN_API_KEY", "").partition(",")[0].strip() or None


def own_key_headers() -> dict[str, str] | None:
    """Return the header with the key from CARAVAN_API_KEY, None if there is none."""
    key = own_key()
    return {"authorization": f"Bearer {key}"} if key else None
