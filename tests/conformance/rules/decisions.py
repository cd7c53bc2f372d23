"""Decisions: questions about a text, answered with probabilities."""

import math

from tests.conformance.target import Body, Target

PATH = "/v1/decisions"
PREDICATE = {"type": "predicate", "name": "late", "instructions": "The parcel arrived late."}
CHOICE = {"type": "choice", "instructions": "Who handles it?", "choices": [{"value": "carrier"}, {"value": False}]}
SCORE = {"type": "score", "instructions": "How angry?", "levels": [{"label": "calm"}, {"label": "angry"}]}


def _decide(target: Target, **fields: object) -> Body:
    questions = [PREDICATE, CHOICE, SCORE]
    body = {"model": target.model, "input": "The parcel came late and open.", "questions": questions} | fields
    response = target.post(PATH, body)
    assert response.status_code == 200, f"status {response.status_code}: {response.text[:200]}"
    answer: Body = response.json()
    return answer


def answers_come_in_order(target: Target) -> None:
    """Answers have the types and names of their questions, in order; a name that is missing is null."""
    answers = _decide(target)["answers"]
    assert [(one["type"], one["name"]) for one in answers] == [("predicate", "late"), ("choice", None), ("score", None)]


def probabilities_add_up(target: Target) -> None:
    """Probabilities are not rounded, add up to 1 and have every option with its type."""
    predicate, choice, score = _decide(target)["answers"]
    assert 0 < predicate["probability"] < 1
    assert [one["value"] for one in choice["probabilities"]] == ["carrier", False]
    assert [(one["value"], one["label"]) for one in score["probabilities"]] == [(0, "calm"), (1, "angry")]
    for answer in (choice, score):
        assert abs(math.fsum(one["probability"] for one in answer["probabilities"]) - 1) < 1e-12


def scores_follow(target: Target) -> None:
    """A score is the expected level, a choice the most probable option; confidences are from 0 to 1."""
    _, choice, score = _decide(target)["answers"]
    assert abs(score["score"] - score["probabilities"][1]["probability"]) < 1e-12
    assert choice["choice"] == max(choice["probabilities"], key=lambda one: one["probability"])["value"]
    assert 0 <= choice["confidence"] <= 1
    assert 0 <= score["confidence"] <= 1


def usage_counts_questions(target: Target) -> None:
    """`input_tokens` counts the prompt of each question; nothing is billed as output."""
    one = _decide(target, questions=[PREDICATE])["usage"]
    two = _decide(target, questions=[PREDICATE, PREDICATE])["usage"]
    assert two["input_tokens"] == 2 * one["input_tokens"] == two["total_tokens"]
    assert two["output_tokens"] == 0


def answers_repeat(target: Target) -> None:
    """The same question has the same probabilities, alone and beside others, to the last bit."""
    (alone,) = _decide(target, questions=[SCORE])["answers"]
    assert _decide(target)["answers"][2] == alone


def the_official_client_reads_decisions(target: Target) -> None:
    """The official client's `decisions` resource reads the answers."""
    decision = target.client.decisions.create(
        model=target.model,
        input=[{"role": "user", "content": "The parcel came late."}],
        questions=[{"type": "predicate", "instructions": "It came late."}],
    )
    assert decision.answers[0].type == "predicate"
    assert decision.usage.input_tokens > 0


def wrong_decisions_are_refused(target: Target) -> None:
    """No question, an unknown type, one option and equal options are refused."""
    text = {"input": "hi"}
    target.refused(PATH, text | {"questions": []})
    target.refused(PATH, text | {"questions": [{"type": "essay", "instructions": "x"}]})
    target.refused(PATH, text | {"questions": [CHOICE | {"choices": [{"value": "a"}]}]})
    target.refused(PATH, text | {"questions": [CHOICE | {"choices": [{"value": "a"}, {"value": "a"}]}]})


def system_one_answers(target: Target) -> None:
    """/v1/systemone answers by name: a noul, a choice with its probabilities, a score with its legend."""
    questions = {
        "late": {"type": "noul", "instructions": "It came late.", "criteria": {"true": "after noon"}},
        "who": {"type": "choice", "instructions": "Who?", "criteria": {"carrier": "the lorry", "us": None}},
        "anger": {"type": "score", "instructions": "How angry?", "criteria": ["calm", "angry"]},
    }
    body = {"model": target.model, "state": {"parcel": "late"}, "questions": questions}
    response = target.post("/v1/systemone", body)
    assert response.status_code == 200, f"status {response.status_code}: {response.text[:200]}"
    late, who, anger = (response.json()["answers"][name] for name in questions)
    assert 0 < late["noul"] < 1
    assert "confidence" not in late
    assert set(who["probabilities"]) == {"carrier", "us"}
    assert anger["legend"] == {"0": "calm", "1": "angry"}
    assert abs(anger["score"] - anger["probabilities"]["1"]) < 1e-12


def documents_are_ranked(target: Target) -> None:
    """/v1/rerank returns documents best first; /v1/score returns the scores in the order of the texts."""
    documents = ["Bread is baked in an oven.", "Paris is the capital of France."]
    query = {"model": target.model, "query": "capital of France", "documents": documents}
    results = target.post("/v1/rerank", query).json()["results"]
    assert sorted(one["index"] for one in results) == [0, 1]
    assert results[0]["relevance_score"] >= results[1]["relevance_score"]
    pairs = {"model": target.model, "text_1": "capital of France", "text_2": documents}
    scores = target.post("/v1/score", pairs).json()["data"]
    assert {one["index"]: one["score"] for one in scores} == {one["index"]: one["relevance_score"] for one in results}
