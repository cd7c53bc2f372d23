"""The prompt in the answer: echo, its log-probabilities, answers without output."""

from typing import Any

import pytest

from tests.server.openai.api import COMPLETIONS, Api, open_api, text_of
from tests.support.fakes import BOS, says


async def test_an_echoed_answer_begins_with_its_prompt_streamed_and_not(api: Api) -> None:
    answer = await api.complete(prompt=["hé😀", "yo"], n=2, echo=True)
    texts = [choice["text"] for choice in answer["choices"]]
    assert texts == ["hé😀Hello!"] * 2 + ["yoHello!"] * 2
    assert answer["usage"]["completion_tokens"] == 28
    chunks = await api.stream(COMPLETIONS, prompt="hé😀", echo=True)
    assert text_of(chunks) == "hé😀Hello!"


async def test_stop_strings_are_not_looked_for_in_the_prompt(api: Api) -> None:
    answer = await api.complete(prompt="a stop", echo=True, stop=["stop", "lo"])
    assert answer["choices"][0]["text"] == "a stopHel"


async def test_an_echo_has_the_log_probabilities_of_all_its_tokens() -> None:
    async with open_api(says("ok"), adds_bos=True) as api:
        answer = await api.complete(prompt="é!", echo=True, logprobs=1)
        (choice,) = answer["choices"]
        logprobs = choice["logprobs"]
        assert choice["text"] == "é!ok"
        assert logprobs["tokens"] == ["<s>", "bytes:\\xc3", "bytes:\\xa9", "!", "o", "k"]
        assert logprobs["text_offset"] == [0, 0, 0, 1, 2, 3]
        assert logprobs["token_logprobs"] == [None, -5.0, -5.0, -5.0, -5.0, -5.0]
        assert logprobs["top_logprobs"][0] is None
        assert logprobs["top_logprobs"][3] == {'"': -0.5, "!": -5.0}
        chunks = await api.stream(COMPLETIONS, prompt="é!", echo=True, logprobs=1)
        parts = [chunk["choices"][0]["logprobs"] for chunk in chunks]
        streamed = {name: [one for part in parts if part for one in part[name]] for name in logprobs}
        assert streamed == logprobs
        assert api.engine.submitted[0][0][0] == BOS


async def test_a_request_for_the_prompt_alone_generates_nothing(api: Api) -> None:
    answer = await api.complete(prompt="hi", echo=True, max_tokens=0, logprobs=0)
    (choice,) = answer["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("hi", "length")
    assert choice["logprobs"]["token_logprobs"] == [None, -5.0]
    assert answer["usage"] == {
        "prompt_tokens": 2,
        "completion_tokens": 0,
        "total_tokens": 2,
        "prompt_tokens_details": {"cached_tokens": 0},
    }
    assert api.sample("prompt_tokens_total") == 2


async def test_a_prompt_that_fills_the_context_leaves_no_room_for_a_completion(api: Api) -> None:
    answer = await api.complete(prompt="x" * 512, echo=True, max_tokens=0)
    assert answer["choices"][0]["text"] == "x" * 512
    response = await api.http.post(COMPLETIONS, json={"model": "fake", "prompt": "x" * 513, "echo": True} | NOTHING)
    assert response.json()["error"]["code"] == "context_length_exceeded"


NOTHING: dict[str, Any] = {"max_tokens": 0}


async def test_prompt_logprobs_have_each_token_and_its_alternatives(api: Api) -> None:
    answer = await api.complete(prompt="hi", prompt_logprobs=1, n=2)
    expected = [
        None,
        {"106": {"logprob": -0.5, "decoded_token": "j"}, "105": {"logprob": -5.0, "decoded_token": "i"}},
    ]
    assert [choice["prompt_logprobs"] for choice in answer["choices"]] == [expected] * 2
    assert answer["choices"][0]["logprobs"] is None
    assert answer["choices"][0]["text"] == "Hello!"


async def test_a_chat_has_its_prompt_logprobs_once(api: Api) -> None:
    answer = await api.chat(prompt_logprobs=0)
    prompt, _, _ = api.engine.submitted[0]
    assert [token and list(token) for token in answer["prompt_logprobs"]] == [None, *([str(t)] for t in prompt[1:])]
    assert "prompt_logprobs" not in answer["choices"][0]


@pytest.mark.parametrize("logprobs", [0, 3])
async def test_an_echo_and_prompt_logprobs_each_have_the_requested_alternatives(api: Api, logprobs: int) -> None:
    answer = await api.complete(prompt="hi", echo=True, logprobs=logprobs, prompt_logprobs=2)
    (choice,) = answer["choices"]
    assert len(choice["prompt_logprobs"][1]) == 3
    assert len(choice["logprobs"]["top_logprobs"][1]) == logprobs + 1
