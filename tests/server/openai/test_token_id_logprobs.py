"""`logprob_token_ids` of completions and chats: log-probabilities of given tokens as the first new one."""

import math
from typing import Any

import pytest

from tests.server.openai.api import CHAT, COMPLETIONS, Api, a_chat
from tests.support.error_answers import error_of

WANTED = [65, 3, 65]
EXPECTED = {"65": -3.0, "3": -4.0}


@pytest.mark.parametrize("fields", [{}, {"logprobs": 1}, {"n": 2}, {"max_tokens": 0}, {"max_tokens": 0, "echo": True}])
async def test_a_completion_has_them_with_and_without_a_sampled_token(api: Api, fields: dict[str, Any]) -> None:
    choices = (await api.complete(logprob_token_ids=WANTED, **fields))["choices"]
    assert [choice["token_id_logprobs"] for choice in choices] == [EXPECTED] * fields.get("n", 1)
    if fields.get("max_tokens") == 0:
        assert choices[0]["text"] == ("hi" if "echo" in fields else "")
    assert "token_id_logprobs" not in (await api.complete())["choices"][0]


async def test_a_chat_has_them_beside_its_message(api: Api) -> None:
    (choice,) = (await api.chat(logprob_token_ids=WANTED))["choices"]
    assert choice["token_id_logprobs"] == EXPECTED
    assert choice["message"]["content"] == "Hello!"


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
@pytest.mark.parametrize("fields", [{}, {"logprobs": True}, {"return_token_ids": True}])
async def test_a_stream_has_them_once_in_its_first_chunk_with_text(api: Api, path: str, fields: dict[str, Any]) -> None:
    if path == COMPLETIONS and "logprobs" in fields:
        fields = {"logprobs": 1}
    chunks = await api.stream(path, logprob_token_ids=WANTED, **fields)
    found = [choice for chunk in chunks for choice in chunk["choices"] if "token_id_logprobs" in choice]
    assert [one["token_id_logprobs"] for one in found] == [EXPECTED]
    assert (found[0]["text"] if path == COMPLETIONS else found[0]["delta"]["content"]).startswith("H")


async def test_a_stream_with_tools_has_them_before_a_call_is_decided(api: Api) -> None:
    tool = {"type": "function", "function": {"name": "f"}}
    chunks = await api.stream(CHAT, logprob_token_ids=WANTED, tools=[tool])
    found = [choice for chunk in chunks for choice in chunk["choices"] if "token_id_logprobs" in choice]
    assert [one["token_id_logprobs"] for one in found] == [EXPECTED]


async def test_a_probability_of_zero_is_a_number(api: Api) -> None:
    api.engine.logprob_after = lambda _, token_id: -math.inf if token_id == 3 else -1.0
    (choice,) = (await api.complete(logprob_token_ids=WANTED))["choices"]
    assert choice["token_id_logprobs"] == {"65": -1.0, "3": -9999.0}


@pytest.mark.parametrize(("path", "body"), [(COMPLETIONS, {"model": "fake", "prompt": "hi"}), (CHAT, a_chat())])
async def test_tokens_that_the_vocabulary_lacks_and_too_many_are_refused(
    api: Api, path: str, body: dict[str, Any]
) -> None:
    for wrong in ([260], [-1], [1] * 129, 7):
        error = error_of(await api.http.post(path, json=body | {"logprob_token_ids": wrong}))
        assert error["param"].startswith("logprob_token_ids")
    assert not api.engine.submitted
