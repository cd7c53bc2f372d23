"""What clients check in the answers of /v1/decisions before they return them."""

import json
import math

from tests.server.openai.api import Api
from tests.server.openai.asked_decisions import CHOICE, SCORE, decide


async def test_the_answers_are_what_pydantic_ai_accepts(api: Api) -> None:
    """It rejects answers whose options are not those offered, do not add up to 1, or from which a score differs."""
    predicate, choice, score = (await decide(api))["answers"]
    assert 0 <= predicate["probability"] <= 1
    offered = [one["value"] for one in CHOICE["choices"]]  # type: ignore[index]
    values = [one["value"] for one in choice["probabilities"]]
    assert list(map(json.dumps, values)) == list(map(json.dumps, offered))
    assert choice["choice"] in offered
    labels = [one["label"] for one in SCORE["levels"]]  # type: ignore[index]
    assert [(one["value"], one["label"]) for one in score["probabilities"]] == list(enumerate(labels))
    for answer in (choice, score):
        assert math.isclose(math.fsum(one["probability"] for one in answer["probabilities"]), 1, abs_tol=1e-9)
    expected = math.fsum(one["value"] * one["probability"] for one in score["probabilities"])
    assert math.isclose(score["score"], expected, abs_tol=1e-9)
