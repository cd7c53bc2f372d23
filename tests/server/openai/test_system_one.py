"""/v1/systemone: TypeSafe's form of questions about a state."""

import math
from typing import Any

import pytest

from caravan.server.openai.question import HOW_TO_ANSWER
from tests.server.openai.api import Api, Body, answered
from tests.support.error_answers import error_of

PATH = "/v1/systemone"
QUESTIONS: Body = {
    "late": {"type": "noul", "instructions": "It came late.", "criteria": {"true": "after noon", "false": "before"}},
    "open": {"type": "noul", "instructions": "It was open."},
    "who": {"type": "choice", "instructions": "Who?", "criteria": {"carrier": "the lorry", "us": None}},
    "anger": {"type": "score", "instructions": "How angry?", "criteria": ["calm", "angry", "furious"]},
    "only": {"type": "score", "instructions": "How?", "criteria": ["so"]},
}


def a_request(**fields: Any) -> Body:
    return {"model": "fake", "state": {"parcel": ["late"]}, "questions": QUESTIONS} | fields


async def test_answers_have_the_names_of_their_questions(api: Api) -> None:
    api.engine.logprob_after = lambda _, token_id: -1.0 - token_id % 2
    answer = answered(await api.http.post(PATH, json=a_request()))
    assert [*answer["answers"]] == [*QUESTIONS]
    late, _, who, anger, only = answer["answers"].values()
    odd, even = math.exp(-2), math.exp(-1)  # the codes are Y and N, A and B, 0 to 2
    assert late == {"type": "noul", "noul": pytest.approx(odd / (odd + even)), "label_mass": pytest.approx(odd + even)}
    assert who["choice"] == "us"
    assert who["probabilities"] == {
        "carrier": pytest.approx(odd / (odd + even)),
        "us": pytest.approx(even / (odd + even)),
    }
    assert who["confidence"] == pytest.approx((even - odd) / (odd + even))
    assert anger["legend"] == {"0": "calm", "1": "angry", "2": "furious"}
    assert [*anger["probabilities"]] == ["0", "1", "2"]
    assert anger["score"] == pytest.approx(1)
    assert (only["score"], only["confidence"], only["probabilities"]) == (0, 1, {"0": 1})
    num_tokens = sum(len(tokens) for tokens, *_ in api.engine.submitted)
    assert answer["usage"] == {"input_tokens": num_tokens, "output_tokens": 0}
    assert set(answer) == {"model", "answers", "usage"}


async def test_a_state_is_written_as_json_and_criteria_with_their_codes(api: Api) -> None:
    answered(await api.http.post(PATH, json=a_request()))
    assert (
        f'{{"parcel": ["late"]}}\n\n{HOW_TO_ANSWER}\n\nTrue? It came late.\nY: after noon\nN: before<|im_end|>'
        in api.prompt_text(0)
    )
    assert "\n\nWho?\nA: carrier - the lorry\nB: us<|im_end|>" in api.prompt_text(2)
    answered(await api.http.post(PATH, json=a_request(state="plain")))
    assert "<|im_start|>user\nplain\n\nAnswer each" in api.prompt_text(-5)


@pytest.mark.parametrize(
    ("fields", "param", "says"),
    [
        ({"state": 7}, "state", "a string, an object or a list"),
        ({"state": ""}, "state", "empty"),
        ({"questions": {}}, "questions", "at least 1"),
        (
            {"questions": {"a": {"type": "choice", "instructions": "x", "criteria": {}}}},
            "questions.a.criteria",
            "at least 1",
        ),
        (
            {
                "questions": {
                    "a": {"type": "choice", "instructions": "x", "criteria": dict.fromkeys(map(str, range(27)))}
                }
            },
            "questions.a.criteria",
            "one-token codes for 26",
        ),
        ({"questions": {"a": {"type": "maybe", "instructions": "x"}}}, "questions.a", "of type"),
        ({"images": ["x"]}, "images", "not supported"),
        ({"model": "other"}, "model", "does not exist"),
    ],
)
async def test_a_wrong_value_is_named(api: Api, fields: Body, param: str, says: str) -> None:
    error = error_of(await api.http.post(PATH, json=a_request(**fields)), 404 if "model" in fields else 400)
    assert error["param"] == param
    assert says in error["message"]
