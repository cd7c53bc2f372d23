"""Threats 27 and 30: requests of one key delay a short request of another by at most a second."""

import pytest

from tests.campaign.key_floods import delays_of_another_key, highest_priority, slow_grammars

MAX_DELAY_SECONDS = 1.0


@pytest.mark.timing
def test_threat_27_slow_grammars_of_one_key_hardly_delay_another() -> None:
    delays = delays_of_another_key(slow_grammars, 12)
    print(delays)
    assert delays.num_refused > 0
    assert delays.longest < MAX_DELAY_SECONDS


@pytest.mark.timing
def test_threat_30_the_highest_priority_of_one_key_hardly_delays_another() -> None:
    delays = delays_of_another_key(highest_priority, 12)
    print(delays)
    assert (delays.num_refused, delays.num_finished > 0) == (0, True)
    assert delays.longest < MAX_DELAY_SECONDS
