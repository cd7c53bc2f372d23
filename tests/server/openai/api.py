"""The whole application over a fake engine, in the process of the test."""

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from types import MappingProxyType
from typing import Any

import httpx
from fastapi import FastAPI

from caravan.model.sampling.generation_defaults import GenerationDefaults
from caravan.scheduler.messages import AdapterSource
from caravan.server.app import AppParts, create_app
from caravan.server.batches.batches import Batches
from caravan.server.engine.client import EngineClient
from caravan.server.engine.listener import EngineListeners
from caravan.server.generation.admission import Admission
from caravan.server.generation.answer_codes import answer_codes
from caravan.server.generation.executors import Executors
from caravan.server.generation.request_limits import QueueLimits, RequestLimits
from caravan.server.generation.served_model import ServedModel
from caravan.server.http.api_keys import ApiKeys
from caravan.server.http.client_address import Network
from caravan.server.http.concurrency_limit import ConcurrencyLimit
from caravan.server.http.request_log import OnResponse
from caravan.server.learn.tracer import Tracer
from caravan.server.observe.metrics import Metrics
from caravan.server.observe.request_history import RequestHistory
from caravan.server.openai.adapter_folder import AdapterFolder
from caravan.server.openai.thought_tokens import thought_token_ids
from caravan.server.openai.tool_calls.call_format import call_token_ids
from caravan.server.operations.live_view import LiveView
from caravan.server.resumption.settings import ResumeLimits
from caravan.server.sandbox.chat_template import ChatTemplate
from caravan.server.sandbox.grammar_check import GrammarCheck
from tests.support.fakes import FakeEngineClient, Script, byte_tokenizer, says

COMPLETIONS = "/v1/completions"
CHAT = "/v1/chat/completions"
MAX_MODEL_LEN = 512

# Roles and contents are plain text, so that tests can read the prompt from the token ids.
CHAT_ML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

Body = dict[str, Any]


class Api:
    """The application, and the fake engine and the metrics that tests examine."""

    def __init__(self, app: FastAPI, engine: FakeEngineClient, metrics: Metrics, http: httpx.AsyncClient) -> None:
        self.app = app
        self.engine = engine
        self.metrics = metrics
        self.http = http

    async def complete(self, **fields: Any) -> Body:
        """Return the response to a completion of "hi"."""
        response = await self.http.post(COMPLETIONS, json={"model": "fake", "prompt": "hi"} | fields)
        return answered(response)

    async def chat(self, **fields: Any) -> Body:
        """Return the response to a chat that says "hi"."""
        response = await self.http.post(CHAT, json=a_chat() | fields)
        return answered(response)

    async def stream(self, path: str, **fields: Any) -> list[Body]:
        """Return the chunks of a stream, of which the last must have been [DONE]."""
        body = (a_chat() if path == CHAT else {"model": "fake", "prompt": "hi"}) | {"stream": True} | fields
        response = await self.http.post(path, json=body)
        assert response.status_code == 200, response.text
        assert response.headers["content-type"].startswith("text/event-stream")
        return events_in(response.text)

    def prompt_text(self, index: int = -1) -> str:
        """Return the prompt that the engine got, with the names of special tokens."""
        tokenizer = byte_tokenizer()
        return b"".join(map(tokenizer.token_bytes, self.engine.submitted[index][0])).decode()

    def sample(self, name: str, **labels: str) -> float:
        """Return one value of the metrics, 0 if it is not there yet."""
        return self.metrics.registry.get_sample_value(f"caravan_{name}", {"model_name": "fake"} | labels) or 0.0


def a_chat(*contents: str) -> Body:
    """Return the body of a chat in which the user says `contents`, one message each."""
    return {"model": "fake", "messages": [{"role": "user", "content": content} for content in contents or ("hi",)]}


def answered(response: httpx.Response) -> Body:
    """Return the body of a success."""
    assert response.status_code == 200, response.text
    body: Body = response.json()
    return body


def events_in(text: str) -> list[Body]:
    """Return the events of a whole stream without the last one, which must be [DONE]."""
    assert text.endswith("data: [DONE]\n\n")
    lines = text.removesuffix("\n\n").split("\n\n")
    assert all(line.startswith("data: ") and "\n" not in line for line in lines)
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def text_of(chunks: list[Body], index: int = 0) -> str:
    """Return the text of one choice of a stream of either kind."""
    choices = [choice for chunk in chunks for choice in chunk["choices"] if choice["index"] == index]
    return "".join(choice["delta"].get("content") or "" if "delta" in choice else choice["text"] for choice in choices)


@asynccontextmanager
async def open_api(
    script: Script | None = None,
    *,
    chat_template: ChatTemplate | None = None,
    limits: RequestLimits | None = None,
    defaults: GenerationDefaults | None = None,
    adds_bos: bool = False,
    num_cached_tokens: int = 0,
    keys: ApiKeys | None = None,
    on_response: OnResponse = lambda _: None,
    max_model_len: int = MAX_MODEL_LEN,
    aliases: tuple[str, ...] = ("org/fake-7b",),
    queue_limits: QueueLimits | None = None,
    concurrency_limit: ConcurrencyLimit | None = None,
    grammar_check: GrammarCheck | None = None,
    executors: Executors | None = None,
    origins: Sequence[str] = (),
    trusted_proxies: Sequence[Network] = (),
    batches: Batches | None = None,
    max_batch_lines: int = 4,
    resume_limits: ResumeLimits | None = None,
    root_path: str = "",
    tracer: Tracer | None = None,
    template_variables: Mapping[str, str | int | float | bool | None] = MappingProxyType({}),
    started_client: EngineClient | None = None,
    adapters: Sequence[AdapterSource] = (),
    adapter_folder: AdapterFolder | None = None,
) -> AsyncIterator[Api]:
    """Return an application whose engine follows `script`, by default "Hello!"; `started_client` takes its place."""
    engine = FakeEngineClient(script or says("Hello!"), num_cached_tokens=num_cached_tokens)
    is_restricted = keys is not None and keys.is_scraping_limited
    metrics = Metrics("fake", engine.config, keys.names if keys else (), is_restricted=is_restricted)
    history = RequestHistory()
    (started_client or engine).listener = EngineListeners([metrics, history])
    admission = Admission(engine.config, metrics, queue_limits or QueueLimits())
    tokenizer = byte_tokenizer(adds_bos=adds_bos)
    served = ServedModel(
        name="fake",
        aliases=aliases,
        max_model_len=max_model_len,
        engine=started_client or engine,
        tokenizer=tokenizer,
        chat_template=chat_template,
        codes=answer_codes(tokenizer, chat_template),
        shown_token_ids=call_token_ids(tokenizer) | thought_token_ids(tokenizer, chat_template),
        template_variables=template_variables,
        metrics=metrics,
        admission=admission,
        history=history,
        limits=limits or RequestLimits(),
        defaults=defaults or GenerationDefaults(),
        grammar_check=grammar_check or GrammarCheck(),
        executors=executors or Executors(),
    )
    parts = AppParts(
        models=[served],
        adapted=[served.with_adapter(adapter) for adapter in adapters],
        adapter_folder=adapter_folder,
        live_views=[LiveView(engine.subscribe)],
        version="1.2.3",
        concurrency_limit=concurrency_limit
        or ConcurrencyLimit(engine.config.max_num_seqs + admission.limits.max_requests),
        keys=keys,
        origins=origins,
        trusted_proxies=trusted_proxies,
        on_response=on_response,
        batches=batches,
        max_batch_lines=max_batch_lines,
        resume_limits=resume_limits,
        root_path=root_path,
        tracer=tracer,
    )
    app = create_app(parts)
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        yield Api(app, engine, metrics, http)
