"""Fair share: how much of a common limit one API key may use."""

from collections.abc import Mapping


def has_room(used: Mapping[str, int], key_name: str, num_more: int, limit: int) -> bool:
    """Return whether a key may use `num_more`: all keys stay within the limit, or this key within its fair share.

    The fair share is the limit divided by the number of keys in use. So one key alone may use the whole limit, and
    another one still gets its fair share; k keys use at most 1 + 1/2 + ... + 1/k times the limit.
    """
    if sum(used.values()) + num_more <= limit:
        return True
    num_keys = len({name for name, num in used.items() if num > 0} | {key_name})
    return used.get(key_name, 0) + num_more <= limit // num_keys
