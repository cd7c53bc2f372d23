"""Fair share: how much of a common limit one key may use."""

from collections import Counter

import pytest

from caravan.server.generation.fair_share import has_room


def test_one_key_alone_may_use_the_whole_limit() -> None:
    assert has_room({}, "one", 10, limit=10)
    assert has_room({"one": 9}, "one", 1, limit=10)
    assert not has_room({"one": 10}, "one", 1, limit=10)
    assert not has_room({}, "one", 1, limit=0)


def test_another_key_gets_its_fair_share_when_the_limit_is_reached() -> None:
    held = {"one": 10, "gone": 0}
    assert has_room(held, "other", 5, limit=10)
    assert not has_room(held, "other", 6, limit=10)
    assert not has_room(held | {"other": 5}, "one", 1, limit=10)
    assert not has_room(held | {"other": 1}, "third", 4, limit=10)


@pytest.mark.parametrize("num_keys", [1, 2, 5, 20])
def test_all_keys_together_stay_within_the_harmonic_bound(num_keys: int) -> None:
    held: Counter[str] = Counter()
    for name in map(str, range(num_keys)):
        while has_room(held, name, 1, limit=120):
            held[name] += 1
    assert held.total() <= 120 * sum(1 / (key + 1) for key in range(num_keys))
    assert min(held.values()) >= 120 // num_keys
