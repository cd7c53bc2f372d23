"""Checks, templates and tokenizing wait in queues of their own, by key, off the event loop."""

import asyncio
import json
import signal
import threading
import time
from collections.abc import AsyncIterator, Iterator

import httpx
import pytest

from caravan.model.tokenizer.tokenizer import Tokenizer
from caravan.server.generation.executors import Executors
from caravan.server.http.api_keys import ApiKeys
from caravan.server.http.concurrency_limit import ConcurrencyLimit
from caravan.server.sandbox.chat_template import ChatTemplate
from caravan.server.sandbox.fair_executor import FairExecutor
from caravan.server.sandbox.grammar_check import GrammarCheck
from tests.server.openai.api import CHAT, CHAT_ML, COMPLETIONS, Api, a_chat, open_api
from tests.server.openai.asgi import AsgiRequest
from tests.support import scripted_worker
from tests.support.waiting import until

KEYS = ApiKeys({"flood": "flood-key-0", "other": "other-key-0"})


@pytest.fixture
def check() -> Iterator[GrammarCheck]:
    check = GrammarCheck(
        worker_program=scripted_worker.__file__, max_waiting_per_key=1, wall_limit_seconds=5, first_limit_seconds=1
    )
    yield check
    check.close()


@pytest.fixture
async def api(check: GrammarCheck, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Api]:
    # What a scripted worker takes for a grammar stands in for one of llguidance's form.
    monkeypatch.setattr(
        "caravan.server.openai.structured_output.constraint.LLMatcher.grammar_from_lark", lambda grammar: grammar
    )
    async with open_api(grammar_check=check, keys=KEYS) as opened:
        yield opened


async def ask(api: Api, key: str, *steps: tuple[str, object]) -> httpx.Response:
    body = {"model": "fake", "prompt": "hi", "max_tokens": 2}
    body |= {"grammar": json.dumps(steps)} if steps else {}
    return await api.http.post(COMPLETIONS, json=body, headers={"authorization": f"Bearer {key}-key-0"})


@pytest.mark.slow
async def test_threat_27_a_full_queue_of_checks_is_429_that_names_it_and_only_for_its_key(api: Api) -> None:
    flood = [asyncio.create_task(ask(api, "flood", ("sleep", 0.5), ("fail", name))) for name in "ab"]
    await asyncio.sleep(0.1)
    refused = await ask(api, "flood", ("fail", "c"))
    assert refused.status_code == 429
    assert 1 <= int(refused.headers["retry-after"]) <= 120
    error = refused.json()["error"]
    assert "This key is at its limit of 1 waiting grammar checks" in error["message"]
    assert error["code"] == "server_overloaded"
    others = await ask(api, "other", ("fail", "d"))
    assert (others.status_code, others.json()["error"]["param"]) == (400, "grammar")
    assert (await ask(api, "flood")).status_code == 200
    assert [response.status_code for response in await asyncio.gather(*flood)] == [400, 400]


async def test_threat_27_a_lost_worker_is_an_error_of_the_server(api: Api) -> None:
    for _ in range(2):
        response = await ask(api, "flood", ("signal", signal.SIGKILL))
        assert response.status_code == 503
        assert response.headers["retry-after"]
        assert "worker process" in response.json()["error"]["message"]
    assert api.engine.submitted == []


@pytest.mark.timing
@pytest.mark.slow
async def test_threat_27_a_template_that_is_slow_for_one_key_delays_no_other() -> None:
    loops = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    source = f"{{% if messages[0].content == 'slow' %}}{loops}{{% endif %}}{CHAT_ML}"
    template = ChatTemplate(source, "<s>", "</s>", time_limit_seconds=1.5)
    async with open_api(chat_template=template, keys=KEYS) as api:

        async def chat(key: str, text: str) -> int:
            headers = {"authorization": f"Bearer {key}-key-0"}
            return (await api.http.post(CHAT, json=a_chat(text), headers=headers)).status_code

        flood = [asyncio.create_task(chat("flood", "slow")) for _ in range(4)]
        await asyncio.sleep(0.3)
        began = time.monotonic()
        assert await chat("other", "quick") == 200
        assert time.monotonic() - began < 1
        assert not any(task.done() for task in flood)
        assert await asyncio.gather(*flood) == [400] * 4
    template.close()


@pytest.fixture
def encoding_threads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The name of the thread of each text that is tokenized."""
    names: list[str] = []
    encode = Tokenizer.encode

    def noted(self: Tokenizer, text: str, **options: bool) -> list[int]:
        names.append(threading.current_thread().name)
        return encode(self, text, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Tokenizer, "encode", noted)
    return names


async def test_threat_29_the_sum_of_all_texts_decides_whether_they_are_tokenized_on_the_event_loop(
    encoding_threads: list[str],
) -> None:
    async with open_api(max_model_len=2048) as api:
        await api.complete(prompt=["a" * 300] * 6, max_tokens=1)
        assert {*encoding_threads} == {"MainThread"}
        encoding_threads.clear()
        await api.complete(prompt=["a" * 300] * 7, max_tokens=1)
        assert len(encoding_threads) == 7
        assert all(name.startswith("texts-to-tokenize") for name in encoding_threads)


async def test_threat_29_a_text_far_longer_than_the_context_is_refused_by_its_beginning(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lengths: list[int] = []
    encode = Tokenizer.encode

    def noted(self: Tokenizer, text: str, **options: bool) -> list[int]:
        lengths.append(len(text))
        return encode(self, text, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Tokenizer, "encode", noted)
    async with open_api(max_model_len=512) as api:
        response = await api.http.post(COMPLETIONS, json={"model": "fake", "prompt": "a" * 5000})
        assert response.status_code == 400
        assert response.json()["error"]["code"] == "context_length_exceeded"
        assert response.json()["error"]["message"].startswith("This model's maximum context length is 512 tokens.")
        assert lengths == [2048]
        lengths.clear()
        shown = (await api.http.post("/tokenize", json={"prompt": "a" * 5000})).json()
        assert shown["count"] == 5000  # what is longer than the context can still be counted
        assert shown["tokens"] == [97] * 5000
        assert lengths == [5000]


@pytest.mark.timing
async def test_threat_29_texts_of_one_key_leave_a_thread_to_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    is_released = threading.Event()
    encode = Tokenizer.encode

    def slow(self: Tokenizer, text: str, **options: bool) -> list[int]:
        assert not text.startswith("slow") or is_released.wait(60)
        return encode(self, text, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Tokenizer, "encode", slow)
    async with open_api(keys=KEYS, max_model_len=4096) as api:

        async def complete(key: str, text: str) -> int:
            body = {"model": "fake", "prompt": text, "max_tokens": 1}
            headers = {"authorization": f"Bearer {key}-key-0"}
            return (await api.http.post(COMPLETIONS, json=body, headers=headers)).status_code

        flood = [asyncio.create_task(complete("flood", "slow" * 600)) for _ in range(5)]
        await asyncio.sleep(0.1)
        began = time.monotonic()
        assert await complete("other", "fast" * 600) == 200
        assert await complete("flood", "short") == 200
        assert time.monotonic() - began < 1
        assert not any(task.done() for task in flood)
        is_released.set()
        assert await asyncio.gather(*flood) == [200] * 5


async def test_threat_11_a_client_that_leaves_while_its_texts_wait_takes_them_with_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    is_released = threading.Event()
    encoded: list[str] = []
    encode = Tokenizer.encode

    def slow(self: Tokenizer, text: str, **options: bool) -> list[int]:
        encoded.append(text)
        assert is_released.wait(60)
        return encode(self, text, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Tokenizer, "encode", slow)
    concurrency_limit = ConcurrencyLimit(8)
    async with open_api(max_model_len=4096, concurrency_limit=concurrency_limit) as api:
        bodies = [{"model": "fake", "prompt": str(number) * 3000, "max_tokens": 1} for number in range(6)]
        requests = [AsgiRequest(api.app, COMPLETIONS, body) for body in bodies]
        await until(lambda: len(encoded) == 2)  # the others wait for their turn
        for request in requests:
            request.leave()
        await asyncio.gather(*(request.end() for request in requests))
        assert concurrency_limit.num_requests == 0  # also of those that still run in a thread
        is_released.set()
        assert (await api.complete(prompt="x" * 3000, max_tokens=1))["choices"]
        assert len(encoded) == 3


@pytest.mark.slow
async def test_long_texts_of_tokens_are_written_off_the_event_loop_and_equal_the_short_way() -> None:
    async with open_api() as api:
        text = "é<s>日本" * 400
        shown = (await api.http.post("/tokenize", json={"prompt": text, "return_pieces": True})).json()
        assert shown["count"] == len(shown["tokens"]) == len(text.encode())
        assert shown["pieces"] == [{"id": token_id, "bytes": [token_id]} for token_id in text.encode()]
        detokenized = (await api.http.post("/detokenize", json={"tokens": shown["tokens"]})).json()
        assert detokenized == {"text": text, "prompt": text}
        echoed = await api.complete(prompt=shown["tokens"][:500], max_tokens=0, echo=True)
        assert echoed["choices"][0]["text"] == text.encode()[:500].decode(errors="replace")


async def test_executors_can_be_given_with_limits_of_their_own() -> None:
    executors = Executors(
        tokenizing=FairExecutor(
            "texts to tokenize", num_threads=2, max_running_per_key=1, max_waiting_per_key=0, seconds_per_call=1
        )
    )
    async with open_api(executors=executors, max_model_len=4096) as api:
        body = {"model": "fake", "prompt": "a" * 3000, "max_tokens": 1}
        responses = await asyncio.gather(*(api.http.post(COMPLETIONS, json=body) for _ in range(20)))
        assert {response.status_code for response in responses} == {200, 429}
    executors.close()
