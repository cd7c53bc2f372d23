"""stream_options.continuous_usage_stats: every chunk has the usage so far."""

from itertools import pairwise
from typing import Any

import pytest

from caravan.server.sandbox.chat_template import ChatTemplate
from tests.server.openai.api import CHAT, COMPLETIONS, Api, Body, events_in, open_api
from tests.support.fakes import says

EVERY: Body = {"continuous_usage_stats": True, "include_usage": True}


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
@pytest.mark.parametrize("fields", [{}, {"user": "me"}, {"return_token_ids": True}, {"n": 3, "seed": 1}])
async def test_every_chunk_has_the_usage_so_far(api: Api, path: str, fields: Body) -> None:
    chunks = await api.stream(path, stream_options=EVERY, **fields)
    usages: list[Body] = [chunk["usage"] for chunk in chunks]
    counts = [usage["completion_tokens"] for usage in usages]
    assert all(before <= after for before, after in pairwise(counts))
    assert counts[-2] == counts[-1] == fields.get("n", 1) * len("Hello!\0")
    for usage in usages:
        assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
        assert usage["prompt_tokens"] == usages[-1]["prompt_tokens"] > 0
        assert usage["prompt_tokens_details"] == {"cached_tokens": 0}
    assert chunks[-1]["choices"] == []
    assert chunks[-2]["choices"] != []


async def test_the_count_of_a_chunk_is_exact(api: Api) -> None:
    api.engine.seconds_per_token = 0.01
    shown = 0
    for chunk in (await api.stream(COMPLETIONS, stream_options=EVERY))[:-1]:
        shown += len(chunk["choices"][0]["text"])  # a letter is a token
        is_last = chunk["choices"][0]["finish_reason"] is not None
        assert chunk["usage"]["completion_tokens"] == shown + is_last


async def test_tokens_whose_text_is_held_back_are_counted_with_the_next_chunk(chat_ml: ChatTemplate) -> None:
    async with open_api(says("a\u00e9\U0001f600b"), chat_template=chat_ml) as api:
        api.engine.seconds_per_token = 0.01
        chunks = (await api.stream(COMPLETIONS, stream_options=EVERY))[:-1]
        texts = [chunk["choices"][0]["text"] for chunk in chunks]
        counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
        assert (texts[:4], counts[:4]) == (["a", "\u00e9", "\U0001f600", "b"], [1, 3, 7, 8])


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
async def test_without_include_usage_no_chunk_follows_the_last_choice(api: Api, path: str) -> None:
    chunks = await api.stream(path, stream_options={"continuous_usage_stats": True})
    assert all("usage" in chunk for chunk in chunks)
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
async def test_a_stream_differs_in_the_usage_only(api: Api, path: str) -> None:
    def choices(chunks: list[Body]) -> list[Any]:
        return [chunk["choices"] for chunk in chunks]

    plain = await api.stream(path, stream_options={"include_usage": True})
    assert all("usage" not in chunk for chunk in plain[:-1])
    assert choices(plain) == choices(await api.stream(path, stream_options=EVERY))


async def test_the_cached_tokens_are_in_every_chunk(chat_ml: ChatTemplate) -> None:
    async with open_api(chat_template=chat_ml, num_cached_tokens=2) as api:
        chunks = await api.stream(COMPLETIONS, stream_options=EVERY)
        assert {chunk["usage"]["prompt_tokens_details"]["cached_tokens"] for chunk in chunks} == {2}


async def test_the_requests_of_guidellm_are_accepted(api: Api) -> None:
    for path, limit in ((COMPLETIONS, "max_tokens"), (CHAT, "max_completion_tokens")):
        body = {"model": "fake", "stream": True, "stream_options": EVERY, "stop": None, "ignore_eos": True, limit: 5}
        body |= {"prompt": "hi"} if path == COMPLETIONS else {"messages": [{"role": "user", "content": "hi"}]}
        response = await api.http.post(path, json=body)
        assert response.status_code == 200
        assert "warnings" not in response.text
        assert events_in(response.text)[-1]["usage"]["completion_tokens"] == 5
    assert (await api.http.get("/health")).status_code == 200
