"""The notation of lengths."""

import random
import statistics

import pytest

from caravan.cli.bench.lengths import parse_concurrency, parse_lengths


def draws(text: str) -> list[int]:
    source, lengths = random.Random(0), parse_lengths(text)
    return [lengths.draw(source) for _ in range(4000)]


def test_a_number_is_always_itself() -> None:
    assert set(draws("128")) == {128}


def test_a_range_is_uniform_with_both_ends() -> None:
    assert set(draws("4-7")) == {4, 5, 6, 7}


def test_a_tilde_is_a_normal_distribution() -> None:
    values = draws("128~32")
    assert statistics.mean(values) == pytest.approx(128, rel=0.03)
    assert statistics.stdev(values) == pytest.approx(32, rel=0.1)


def test_a_star_is_a_lognormal_distribution_about_its_median() -> None:
    values = draws("100*2")
    assert statistics.median(values) == pytest.approx(100, rel=0.06)
    assert sum(50 <= value <= 200 for value in values) / len(values) == pytest.approx(0.683, abs=0.03)


def test_no_length_is_less_than_one_token() -> None:
    assert min(draws("2~20")) == 1


@pytest.mark.parametrize("text", ["", "x", "0", "-5", "64-", "64-32", "10*0.5", "1e3", "5~-1"])
def test_what_is_not_a_length_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a"):
        parse_lengths(text)


def test_concurrency_is_one_number_or_several() -> None:
    assert parse_concurrency("1,8,32") == (1, 8, 32)
    for text in ("", "0", "1,", "a", "-1"):
        with pytest.raises(ValueError, match="concurrent requests"):
            parse_concurrency(text)
