"""Prefix misses in explanations and metrics: each reason, and none that reveals what another key has sent."""

import pytest

from caravan.scheduler.config import EngineConfig
from caravan.scheduler.messages import PrefixMiss, SequenceEvent, StepOutput, StepStats
from caravan.server.observe.metrics import Metrics
from caravan.server.observe.prefix_misses import REASONS, client_facts

MISSES = [PrefixMiss(reason, 64, 2.54, 10 + index) for index, reason in enumerate(REASONS)]


def counted(*, is_restricted: bool) -> dict[str, float]:
    """Return the tokens that were counted of each reason, after a step in which one sequence joined for each."""
    metrics = Metrics("m", EngineConfig(num_blocks=64, max_model_len=512), is_restricted=is_restricted)
    events = [SequenceEvent(number, "join", 64, miss=miss) for number, miss in enumerate(MISSES)]
    metrics.on_step(StepOutput(outputs=[], stats=StepStats(), events=[*events, SequenceEvent(9, "chunk", 5, 5)]))
    (family,) = (one for one in metrics.registry.collect() if one.name == "caravan_prefix_cache_misses")
    return {one.labels["reason"]: one.value for one in family.samples if one.name.endswith("_total")}


def test_tokens_are_counted_by_reason_where_only_the_operator_reads_metrics() -> None:
    expected = {miss.reason.replace(" ", "_"): miss.num_tokens for miss in MISSES}
    assert len(expected) == 6
    assert counted(is_restricted=True) == expected


def test_tokens_of_another_key_are_counted_as_not_seen_where_every_key_reads_metrics() -> None:
    tokens = {miss.reason: miss.num_tokens for miss in MISSES}
    counts = counted(is_restricted=False)
    assert "other_key" not in counts
    assert counts["not_seen"] == tokens["not seen"] + tokens["other key"]
    assert sum(counts.values()) == sum(tokens.values())


@pytest.mark.parametrize("miss", MISSES, ids=REASONS)
def test_a_client_gets_reason_token_and_seconds(miss: PrefixMiss) -> None:
    reason = "not seen" if miss.reason == "other key" else miss.reason
    assert client_facts(miss) == {"miss": reason, "miss_token": 64, "miss_seconds": 2.5}


def test_a_client_cannot_distinguish_a_text_of_another_key_from_one_that_nobody_sent() -> None:
    assert client_facts(PrefixMiss("other key", 0, 9.0, 40)) == client_facts(PrefixMiss("not seen", 0, 9.0, 40))


def test_a_miss_without_time_has_no_seconds() -> None:
    assert client_facts(PrefixMiss("too short", 32, None, 5)) == {"miss": "too short", "miss_token": 32}
    assert client_facts(None) == {}
