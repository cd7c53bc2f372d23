"""Fair share: how much one API key may hold of what all keys share."""

from collections.abc import Mapping


def has_room(held: Mapping[str, int], key_name: str, num_more: int, limit: int) -> bool:
    """Whether a key may hold so many more: as long as all keys stay within the limit, or this one within its share.

    The share is the limit over the number of keys that hold something. So a key that is alone may fill everything, and
    another still finds its share when it comes; k keys hold at most 1 + 1/2 + ... + 1/k times the limit.
    """
    if sum(held.values()) + num_more <= limit:
        return True
    num_keys = len({name for name, num in held.items() if num > 0} | {key_name})
    return held.get(key_name, 0) + num_more <= limit // num_keys
