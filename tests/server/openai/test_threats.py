"""Requests that brought other servers down, by the number of the threat in SECURITY.md."""

import ast
import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from caravan.server.sandbox.chat_template import ChatTemplate
from tests.server.openai.api import CHAT, COMPLETIONS, Api, a_chat, open_api, text_of
from tests.server.openai.asgi import AsgiRequest
from tests.support.fakes import echoes
from tests.support.waiting import until

SOURCES = Path(__file__).parents[3]
BAD_IDS = [-1, 260 + 10, 2**31, 2**63, 10**30]


@pytest.mark.parametrize("bad_id", BAD_IDS)
@pytest.mark.parametrize(
    "field", [{"prompt": "IDS"}, {"prompt": ["IDS"]}, {"stop_token_ids": "IDS"}, {"logit_bias": "MAP"}]
)
async def test_threat_3_ids_that_are_no_tokens_reach_no_engine(api: Api, field: dict[str, Any], bad_id: int) -> None:
    written = json.dumps({"model": "fake", "prompt": "hi"} | field)
    written = written.replace('"IDS"', f"[1, {bad_id}]").replace('"MAP"', f'{{"{bad_id}": 1}}')
    refused = await api.http.post(COMPLETIONS, content=written, headers={"content-type": "application/json"})
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] in field
    assert len(refused.content) < 1024
    assert api.engine.submitted == []


@pytest.mark.parametrize(
    "fields",
    [
        {"n": 10**6},
        {"best_of": 10**6},
        {"logprobs": 10**6},
        {"prompt_logprobs": 10**6},
        {"max_tokens": 10**12},
        {"prompt": ["a"] * 10_000},
        {"prompt": ["a"] * 100, "n": 100},
        {"stop": ["a"] * 10_000},
        {"logit_bias": {str(token): 1 for token in range(5000)}},
        {"top_k": 10**12},
        {"min_tokens": 10**12},
    ],
    ids="+".join,
)
async def test_threat_4_what_would_take_all_memory_is_refused_before_it_is_begun(
    api: Api, fields: dict[str, Any]
) -> None:
    refused = await api.http.post(COMPLETIONS, json={"model": "fake", "prompt": "hi"} | fields)
    assert refused.status_code == 400
    assert len(refused.content) < 1024
    assert api.engine.submitted == []


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"prompt": ""}, 400),
        ({"prompt": []}, 400),
        ({"prompt": [[]]}, 400),
        ({"prompt": [""]}, 400),
        ({"prompt": ["a", ""]}, 400),
        ({"max_tokens": 0}, 400),
        ({"max_tokens": 0, "echo": True}, 200),
        ({"prompt": "a" * 511, "max_tokens": 1}, 200),  # with the answer exactly what the model takes
        ({"prompt": "a" * 512, "max_tokens": 1}, 400),
        ({"prompt": "a" * 512, "max_tokens": 0, "echo": True}, 200),
        ({"prompt": "a" * 513, "max_tokens": 0, "echo": True}, 400),
    ],
)
async def test_threat_5_empty_prompts_and_those_at_the_limit_have_defined_answers(
    api: Api, fields: dict[str, Any], status: int
) -> None:
    answer = await api.http.post(COMPLETIONS, json={"model": "fake", "prompt": "hi"} | fields)
    assert answer.status_code == status, answer.text
    assert (await api.http.post(CHAT, json={"model": "fake", "messages": []})).status_code == 400


@pytest.mark.parametrize(
    "fields",
    [
        {"chat_template": "{{ 1 }}"},
        {"chat_template_kwargs": {"chat_template": "{{ 1 }}"}},
        {"chat_template_kwargs": {"messages": "{{ 1 }}"}},
        {"chat_template_kwargs": {"x": ["{{ 1 }}"]}},
    ],
)
async def test_threat_7_templates_from_requests_are_refused(api: Api, fields: dict[str, Any]) -> None:
    refused = await api.http.post(CHAT, json=a_chat() | fields)
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] in fields


@pytest.mark.timing
async def test_threat_8_half_a_million_chunks_of_a_byte_are_read_or_refused_while_others_are_answered() -> None:
    async with open_api() as api:

        async def chunks() -> Any:
            yield b'{"model": "fake", "prompt": "'
            for number in range(500_000):
                yield b"a"
                if number % 1000 == 0:
                    await asyncio.sleep(0)

        large = asyncio.create_task(
            api.http.post(COMPLETIONS, content=chunks(), headers={"content-type": "application/json"})
        )
        slowest = 0.0
        while not large.done():
            began = asyncio.get_running_loop().time()
            assert (await api.http.get("/livez")).status_code == 200
            slowest = max(slowest, asyncio.get_running_loop().time() - began)
            await asyncio.sleep(0.01)
        assert large.result().status_code == 400
        assert slowest < 0.5


async def test_threat_12_equal_request_ids_of_clients_mix_no_answers(chat_ml: ChatTemplate) -> None:
    async with open_api(echoes(), chat_template=chat_ml) as api:
        api.engine.seconds_per_token = 0.001
        prompts = [f"<{number}>" for number in range(20)]

        async def ask(prompt: str) -> httpx.Response:
            body = {"model": "fake", "prompt": prompt, "max_tokens": 12}
            return await api.http.post(COMPLETIONS, json=body, headers={"x-request-id": "the-same"})

        answers = await asyncio.gather(*map(ask, prompts))
        for prompt, answer in zip(prompts, answers, strict=True):
            assert answer.headers["x-request-id"] == "the-same"
            assert answer.json()["choices"][0]["text"] == (prompt * 4)[:12]
        assert len({answer.json()["id"] for answer in answers}) == 20


@pytest.mark.parametrize("model", ["../../etc/passwd", "/etc/passwd", "fake/../fake", "http://127.0.0.1/", ""])
async def test_threat_14_a_models_name_is_looked_up_and_never_opened_or_fetched(api: Api, model: str) -> None:
    for path, body in ((COMPLETIONS, {"prompt": "hi"}), (CHAT, {"messages": [{"role": "user", "content": "hi"}]})):
        refused = await api.http.post(path, json=body | {"model": model})
        assert refused.status_code == 404
        assert refused.json()["error"]["code"] == "model_not_found"


@pytest.mark.parametrize("kind", ["image_url", "input_image", "file", "input_audio"])
async def test_threat_14_nothing_that_a_message_names_is_fetched(api: Api, kind: str) -> None:
    part = {"type": kind, kind: {"url": "http://169.254.169.254/latest/meta-data"}}
    refused = await api.http.post(CHAT, json={"model": "fake", "messages": [{"role": "user", "content": [part]}]})
    assert refused.status_code == 400
    assert api.engine.submitted == []


async def test_threat_15_no_other_site_is_allowed_to_read_answers_or_to_ask(api: Api) -> None:
    headers = {"origin": "https://evil.example", "access-control-request-method": "POST"}
    for response in (
        await api.http.options(CHAT, headers=headers),
        await api.http.get("/v1/models", headers=headers),
        await api.http.post(CHAT, json=a_chat(), headers=headers),
    ):
        assert not any(name.startswith("access-control") for name in response.headers)
    for content_type in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):  # without preflight
        refused = await api.http.post(CHAT, content=json.dumps(a_chat()), headers={"content-type": content_type})
        assert refused.status_code == 415


async def test_threat_16_streams_of_others_never_show_in_an_answer(chat_ml: ChatTemplate) -> None:
    async with open_api(echoes(), chat_template=chat_ml) as api:
        api.engine.seconds_per_token = 0.0005
        canaries = [f"canary-{number}." for number in range(30)]
        requests = [
            AsgiRequest(api.app, COMPLETIONS, {"model": "fake", "prompt": canary, "max_tokens": 100, "stream": True})
            for canary in canaries
        ]
        await until(lambda: api.engine.num_running == 30)
        for request in requests[::3]:  # ids and streams of cancelled requests are not given to others
            request.leave()
        for canary, request in zip(canaries, requests, strict=True):
            await request.end()
            if request.is_complete:
                chunks = [json.loads(line[6:]) for line in request.body.split("\n\n") if line.startswith("data: {")]
                assert text_of(chunks) == (canary * 12)[:100]


def test_threat_21_nothing_is_unpickled_and_nothing_is_evaluated() -> None:
    forbidden = {"pickle", "cPickle", "_pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}
    for folder in ("server", "scheduler", "model"):
        for file in (SOURCES / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text("utf-8"))):
                names = []
                if isinstance(node, ast.Import):
                    names = [alias.name.partition(".")[0] for alias in node.names]
                elif isinstance(node, ast.ImportFrom):
                    names = [(node.module or "").partition(".")[0]]
                assert not forbidden.intersection(names), file
                if isinstance(node, ast.Call):
                    called = ast.unparse(node.func)
                    assert called not in ("eval", "exec", "__import__"), file
                    if called == "torch.load":
                        keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                        assert keywords.get("weights_only") == "True", file
