"""/v1/score and /v1/rerank: the probability of yes for pairs of texts."""

import math
from typing import Any

import pytest

from caravan.server.openai.protocol.scores import METHOD
from caravan.server.openai.question import HOW_TO_ANSWER
from tests.server.openai.api import Api, Body, answered
from tests.support.error_answers import error_of

DOCUMENTS = ["Bread is baked.", "Paris is a city.", "The sea is wide."]


def a_ranking(**fields: Any) -> Body:
    return {"model": "fake", "query": "capital of France", "documents": DOCUMENTS} | fields


def of_length(prompt: list[int], token_id: int) -> float:
    return -2.0 if token_id == ord("N") else -len(prompt) / 100


async def test_documents_come_best_first_with_the_method_named(api: Api) -> None:
    api.engine.logprob_after = of_length
    answer = answered(await api.http.post("/v1/rerank", json=a_ranking(user="me")))
    assert [result["index"] for result in answer["results"]] == [0, 1, 2]
    assert [result["document"]["text"] for result in answer["results"]] == DOCUMENTS
    yes, no = math.exp(-len(api.engine.submitted[0][0]) / 100), math.exp(-2)
    assert answer["results"][0]["relevance_score"] == pytest.approx(yes / (yes + no))
    assert answer["results"][0]["label_mass"] == pytest.approx(yes + no)
    assert answer["method"] == METHOD
    assert answer["warnings"] == ["`user` has no effect on this server."]
    num_tokens = sum(len(tokens) for tokens, *_ in api.engine.submitted)
    assert answer["usage"] == {"prompt_tokens": num_tokens, "total_tokens": num_tokens}
    question = "Does this text answer the query? Paris is a city.\nY: yes\nN: no<|im_end|>"
    assert f"user\nQuery: capital of France\n\n{HOW_TO_ANSWER}\n\n{question}" in api.prompt_text(1)


async def test_a_ranking_can_be_cut_and_without_texts(api: Api) -> None:
    documents = [{"text": text} for text in DOCUMENTS]
    body = a_ranking(documents=documents, top_n=2, return_documents=False, explain=True)
    answer = answered(await api.http.post("/v1/rerank", json=body))
    assert [set(result) for result in answer["results"]] == [{"index", "relevance_score", "label_mass"}] * 2
    assert answer["explanation"]["id"] == answer["id"]


@pytest.mark.parametrize("names", [("text_1", "text_2"), ("queries", "documents")])
async def test_one_text_or_as_many_are_scored_with_the_others(api: Api, names: tuple[str, str]) -> None:
    first, second = names
    one = answered(await api.http.post("/v1/score", json={"model": "fake", first: "a", second: DOCUMENTS}))
    assert [(entry["index"], entry["object"]) for entry in one["data"]] == [(0, "score"), (1, "score"), (2, "score")]
    assert one["object"] == "list"
    assert one["method"] == METHOD
    many = answered(await api.http.post("/v1/score", json={"model": "fake", first: ["a", "b", "b"], second: DOCUMENTS}))
    assert ["Query: b" in api.prompt_text(index) for index in (-3, -2, -1)] == [False, True, True]
    assert many["data"][0]["score"] == one["data"][0]["score"]


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        ("/v1/score", {"text_1": "a"}, "text_1"),
        ("/v1/score", {"text_1": "a", "documents": ["b"]}, "text_1"),
        ("/v1/score", {"text_1": ["a", "b"], "text_2": ["c"] * 3}, "text_1"),
        ("/v1/score", {"text_1": "a", "text_2": []}, "text_2"),
        ("/v1/score", {"text_1": "a", "text_2": [""]}, "text_2"),
        ("/v1/score", {"text_1": "a", "text_2": ["b"] * 1001}, "text_2"),
        ("/v1/rerank", {"query": "a", "documents": "b"}, "documents"),
        ("/v1/rerank", {"query": "a", "documents": [{"title": "b"}]}, "documents"),
        ("/v1/rerank", {"query": "a", "documents": [{"text": 7}]}, "documents"),
        ("/v1/rerank", {"query": "", "documents": ["b"]}, "query"),
        ("/v1/rerank", {"query": "a", "documents": ["b"], "top_n": -1}, "top_n"),
    ],
)
async def test_a_wrong_value_is_named(api: Api, path: str, fields: Body, param: str) -> None:
    error = error_of(await api.http.post(path, json={"model": "fake"} | fields))
    assert error["param"] == param
    assert not api.engine.submitted
