"""A killed engine in the middle of an answer: each form of generation is the one that nothing disturbs, at each cut."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any, ClassVar

import msgspec
import pytest
from typing_extensions import override

from caravan.scheduler.messages import (
    BatchBegins,
    FinishReason,
    Request,
    SequenceOutput,
    StartEngine,
    StepOutput,
    StepStats,
)
from caravan.server.engine import client as module
from caravan.server.engine.client import EngineClient
from caravan.server.openai.tool_calls.call_format import HERMES
from caravan.server.resumption.settings import ResumeLimits
from caravan.server.sandbox.chat_template import ChatTemplate
from tests.server.openai.api import Api, answered, open_api
from tests.support.fake_process import FakeProcess
from tests.support.fakes import EOS
from tests.support.thinking import QWEN_3
from tests.support.waiting import until

TEXT = "<think>\nHm \u00e9.\n</think>\n\nSee:\n" + HERMES.written([("weather", '{"city": "Rom \U0001f600"}')])
TOKENS = [*TEXT.encode(), EOS]
FUNCTION = {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}
CHAT = {"model": "fake", "messages": [{"role": "user", "content": "hi"}]}
TOOLS = {"tools": [{"type": "function", "function": FUNCTION}]}
MESSAGES = CHAT | {"max_tokens": 300}
FLAT = [{"type": "function", "strict": False} | FUNCTION]
INPUT_SCHEMA = [{"name": "weather", "input_schema": FUNCTION["parameters"]}]
FORMS: dict[str, tuple[str, dict[str, Any]]] = {
    "completions": ("/v1/completions", {"model": "fake", "prompt": "hi", "max_tokens": 300}),
    "chat": ("/v1/chat/completions", CHAT),
    "chat with tools": ("/v1/chat/completions", CHAT | TOOLS),
    "responses": ("/v1/responses", {"model": "fake", "input": "hi"}),
    "responses with tools": ("/v1/responses", {"model": "fake", "input": "hi", "tools": FLAT}),
    "messages": ("/v1/messages", MESSAGES),
    "messages with tools": ("/v1/messages", MESSAGES | {"tools": INPUT_SCHEMA}),
    "ollama chat": ("/api/chat", CHAT | {"stream": False}),
    "ollama chat with tools": ("/api/chat", CHAT | TOOLS | {"stream": False}),
    "ollama generate": ("/api/generate", {"model": "fake", "prompt": "hi", "stream": False}),
}
CUTS = [
    1,
    9,
    12,
    len(TEXT.encode()) - 20,
    len(TEXT.encode()),
]  # in a thought, in a character, in a call, before the end
# What an answer says; chunks of a stream may be longer in one run than in another, so only their sum is compared.
SAID = {
    "content",
    "text",
    "delta",
    "partial_json",
    "thinking",
    "arguments",
    "reasoning",
    "reasoning_content",
    "response",
}
SAID |= {"input", "name", "city", "status", "stop_reason", "finish_reason", "done_reason"}


class SayingProcess(FakeProcess):
    """Says TOKENS, one each step; the first process ends after `dies_after` tokens."""

    dies_after: int | None = None
    tasks: ClassVar[set[asyncio.Task[None]]] = set()

    @override
    def send(self, message: msgspec.Struct) -> None:
        super().send(message)
        if isinstance(message, Request):
            task = asyncio.create_task(self._say(message))
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)

    async def _say(self, request: Request) -> None:
        self.say(BatchBegins(request_ids=[request.request_id]))
        for position in range(len(request.output_token_ids), len(TOKENS)):
            await asyncio.sleep(0)
            if position == self.dies_after and self.pid == 1:
                self.kill()
                return
            end: FinishReason | None = "stop" if TOKENS[position] == EOS else None
            output = SequenceOutput(request_id=request.request_id, token_ids=[TOKENS[position]], finish_reason=end)
            self.say(StepOutput(outputs=[output], stats=StepStats(step=position + 1)))


@pytest.fixture(autouse=True)
def _processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_PAUSE_SECONDS", 0.001)
    SayingProcess.used_by(module, monkeypatch)


@pytest.fixture(scope="module")
def thinking() -> Iterator[ChatTemplate]:
    """The template of a model that thinks; its worker serves all tests of this file."""
    template = ChatTemplate(QWEN_3, "<s>", "</s>")
    yield template
    template.close()


@asynccontextmanager
async def opened(monkeypatch: pytest.MonkeyPatch, template: ChatTemplate, dies_after: int | None) -> AsyncIterator[Api]:
    """An application over an engine process that ends after this number of tokens."""
    SayingProcess.made.clear()
    monkeypatch.setattr(SayingProcess, "dies_after", dies_after)
    client = EngineClient(StartEngine(model_path="model"), hang_seconds=60)
    await client.ready()
    options = {"chat_template": template, "max_model_len": 4096, "resume_limits": ResumeLimits()}
    async with open_api(started_client=client, **options) as api:  # type: ignore[arg-type]
        yield api
    await client.stop()
    assert len(SayingProcess.made) == (1 if dies_after is None else 2)


async def said(api: Api, form: str, *, stream: bool) -> dict[tuple[str, str], str]:
    """Return the texts of an answer, added up, by the kind of event and the name of the field."""
    path, body = FORMS[form]
    response = await api.http.post(path, json=body | {"stream": stream})
    assert response.status_code == 200, response.text
    texts: dict[tuple[str, str], str] = {}
    for line in response.text.splitlines():
        text = line.removeprefix("data: ")
        if text.startswith("{"):
            event = json.loads(text)
            _add(texts, str(event.get("type")), event)
    return texts


def _add(texts: dict[tuple[str, str], str], kind: str, value: Any, name: str = "") -> None:
    if isinstance(value, dict):
        for key, item in value.items():
            _add(texts, kind, item, key)
    elif isinstance(value, list):
        for item in value:
            _add(texts, kind, item, name)
    elif isinstance(value, str) and name in SAID:
        texts[kind, name] = texts.get((kind, name), "") + value


@pytest.mark.parametrize("form", FORMS)
async def test_each_form_is_the_undisturbed_one_after_the_kill_of_its_engine(
    monkeypatch: pytest.MonkeyPatch, thinking: ChatTemplate, form: str
) -> None:
    async with opened(monkeypatch, thinking, None) as api:
        expected = [await said(api, form, stream=stream) for stream in (False, True)]
    assert any("weather" in text for text in expected[0].values())
    assert any("weather" in text for text in expected[1].values())
    for cut in CUTS:
        for number, stream in enumerate((False, True)):
            async with opened(monkeypatch, thinking, cut) as api:
                assert await said(api, form, stream=stream) == expected[number], (cut, stream)


async def test_a_response_in_the_background_goes_on_after_the_kill_of_its_engine(
    monkeypatch: pytest.MonkeyPatch, thinking: ChatTemplate
) -> None:
    body = {"model": "fake", "input": "hi", "tools": FLAT}
    async with opened(monkeypatch, thinking, 12) as api:
        queued = answered(await api.http.post("/v1/responses", json=body | {"background": True}))
        await until(lambda: not SayingProcess.tasks and len(SayingProcess.made) == 2)
        kept = answered(await api.http.get(f"/v1/responses/{queued['id']}"))
        assert kept["status"] == "completed"
        assert [item["type"] for item in kept["output"]] == ["reasoning", "message", "function_call"]
