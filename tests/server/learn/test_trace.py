"""POST /v1/learn/trace: its fields, its limits, and what happens when the process of traces fails."""

import asyncio
import json
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from caravan.model.trace.recording import recording_llama
from caravan.model.trace.trace import trace
from caravan.scheduler.priority import FIRST_TO_KILL
from caravan.server.learn.tracer import MAX_WAITING_PER_KEY, TracedModel, Tracer, start_worker
from caravan.server.sandbox.chat_template import ChatTemplate
from caravan.server.sandbox.worker_process import WorkerProcess
from tests.server.openai.api import CHAT_ML, MAX_MODEL_LEN, Api, answered, open_api
from tests.server.openai.asgi import AsgiRequest
from tests.support import scripted_tracer
from tests.support.fakes import byte_tokenizer
from tests.support.running_server import is_alive
from tests.support.tiny_llama import tiny_llama
from tests.support.waiting import eventually, until

PATH = "/v1/learn/trace"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """What the process answers to each request: the trace of a random model with the tokens of "hi there"."""
    model = tiny_llama(make_model=recording_llama, vocab_size=byte_tokenizer().vocab_size)
    answer = trace(model, byte_tokenizer().encode("hi there"), 1, 2, 7)
    path = tmp_path / "answer.json"
    path.write_text(json.dumps(answer))
    return path


@pytest.fixture
def template() -> Iterator[ChatTemplate]:
    template = ChatTemplate(CHAT_ML, "", "</s>")
    yield template
    template.close()


@asynccontextmanager
async def open_tracing(model: Path | str, **options: Any) -> AsyncIterator[tuple[Api, Tracer]]:
    """Return an application with a scripted process of traces."""
    idle_seconds = options.pop("idle_seconds", 60.0)
    tracer = Tracer(
        idle_seconds=idle_seconds, start=lambda: WorkerProcess(scripted_tracer.__file__, 10, 2**30, niceness=0)
    )
    tracer.models["fake"] = TracedModel(Path(model), MAX_MODEL_LEN)
    try:
        async with open_api(tracer=tracer, **options) as api:
            yield api, tracer
    finally:
        tracer.close()


def answer_in(model: Path) -> dict[str, Any]:
    """Return what the process answers."""
    answer: dict[str, Any] = json.loads(model.read_text())
    return answer


async def error_of(api: Api, status: int, **fields: Any) -> dict[str, Any]:
    """Return the error of a request."""
    response = await api.http.post(PATH, json={"text": "hi there"} | fields)
    assert response.status_code == status, response.text
    error: dict[str, Any] = response.json()["error"]
    return error


async def test_a_trace_has_the_texts_of_its_tokens(model: Path) -> None:
    async with open_tracing(model) as (api, _):
        body = answered(await api.http.post(PATH, json={"text": "hi there", "layer": 1, "head": 2}))
    expected = answer_in(model)
    assert "".join(token["text"] for token in body["tokens"]) == body["prompt"] == "hi there"
    assert (body["layer"], body["head"], body["position"]) == (1, 2, 7)
    assert body["stops"] == expected["stops"]
    assert body["attention"] == expected["attention"]
    assert body["logits"] == expected["logits"]
    assert body["habits"] == expected["habits"]
    assert [[one["id"] for one in words] for words in body["lens"]] == [
        [token_id for token_id, _ in words] for words in expected["lens"]
    ]
    tokenizer = byte_tokenizer()
    for one in body["likeliest"]:
        assert one["text"] == tokenizer.token_bytes(one["id"]).decode("utf-8", "replace")


async def test_a_text_is_a_message_of_a_chat_unless_the_request_says_otherwise(
    model: Path, template: ChatTemplate
) -> None:
    async with open_tracing(model, chat_template=template) as (api, _):
        chat = answered(await api.http.post(PATH, json={"text": "hi"}))
        text = answered(await api.http.post(PATH, json={"text": "hi", "is_chat": False}))
    assert chat["prompt"] == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert text["prompt"] == "hi"
    assert chat["tokens"][0]["text"] == "<|im_start|>"


async def test_threat_39_the_process_starts_with_the_first_trace_and_ends_when_nobody_uses_it(model: Path) -> None:
    async with open_tracing(model, idle_seconds=0.2) as (api, tracer):
        assert tracer.pids == []
        answered(await api.http.post(PATH, json={"text": "hi"}))
        (pid,) = tracer.pids
        answered(await api.http.post(PATH, json={"text": "ho"}))
        assert tracer.pids == [pid]
        async with asyncio.timeout(60):
            while tracer.pids:
                await asyncio.sleep(0.02)
        assert not is_alive(pid)
        answered(await api.http.post(PATH, json={"text": "hi"}))
        (another,) = tracer.pids
    assert another != pid
    assert not is_alive(another)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has such a score")
def test_the_process_is_the_first_to_be_killed_if_memory_is_short(tmp_path: Path) -> None:
    worker = start_worker()
    try:
        assert worker.call({"path": str(tmp_path), "adapter": "", "max_position": 64})["code"] == "unreadable"
        assert int(Path(f"/proc/{worker.pid}/oom_score_adj").read_text()) == FIRST_TO_KILL
    finally:
        worker.close()


async def test_the_server_does_not_wait_until_an_idle_process_has_ended(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closing, may_close, close = threading.Event(), threading.Event(), WorkerProcess.close
    in_time: list[bool] = []

    def close_late(worker: WorkerProcess) -> None:
        closing.set()
        in_time.append(may_close.wait(60))
        close(worker)

    monkeypatch.setattr(WorkerProcess, "close", close_late)
    async with open_tracing(model, idle_seconds=0.1) as (api, tracer):
        answered(await api.http.post(PATH, json={"text": "hi"}))
        (pid,) = tracer.pids
        await until(closing.is_set)
        post = asyncio.create_task(api.http.post(PATH, json={"text": "hi"}))
        await asyncio.sleep(0.1)
        assert not post.done()
        may_close.set()
        answered(await post)
        assert not is_alive(pid)
    assert all(in_time)


async def test_an_idle_process_without_a_thread_to_end_it_is_still_used_and_ends_later(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused: list[str] = []
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name == "end-of-traces" and len(refused) < 2:
            refused.append(thread.name)
            raise RuntimeError("can't start new thread")
        start(thread)

    async with open_tracing(model, idle_seconds=0.05) as (api, tracer):
        monkeypatch.setattr(threading.Thread, "start", refuse)
        answered(await api.http.post(PATH, json={"text": "hi"}))
        (pid,) = tracer.pids
        await until(lambda: len(refused) == 1)
        answered(await api.http.post(PATH, json={"text": "ho"}))
        await until(lambda: len(refused) == 2 and not tracer.pids)
        assert not is_alive(pid)


async def test_another_model_takes_the_place_of_the_first(model: Path) -> None:
    async with open_tracing(model) as (_, tracer):
        tracer.models["second"] = TracedModel(model, MAX_MODEL_LEN)
        request: dict[str, Any] = {"token_ids": [1], "layer": 0}
        await tracer.trace("fake", request, "")
        (pid,) = tracer.pids
        await tracer.trace("second", request, "")
        assert tracer.pids != [pid]
        assert not is_alive(pid)


async def test_threat_39_without_lessons_traces_are_refused() -> None:
    async with open_api() as api:
        error = await error_of(api, 403)
    assert error["code"] == "learn_off"
    assert "--learn on" in error["message"]


async def test_a_text_of_more_than_64_tokens_is_refused(model: Path) -> None:
    async with open_tracing(model) as (api, tracer):
        answered(await api.http.post(PATH, json={"text": "a" * 64}))
        tracer.close()
        error = await error_of(api, 400, text="a" * 65)
        assert error["message"].startswith("The limit is 64 tokens. However, you sent 65 tokens")
        error = await error_of(api, 400, text="a" * 4000)
        assert error["message"].startswith("The limit is 64 tokens.")
        assert tracer.pids == []


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"text": ""}, "text"),
        ({"layer": -1}, "layer"),
        ({"head": "first"}, "head"),
        ({"layer": 2}, "layer"),  # of the model, which the process knows
        ({"tokens": 3}, "tokens"),
    ],
)
async def test_a_wrong_field_is_named(model: Path, fields: dict[str, Any], param: str) -> None:
    async with open_tracing(model) as (api, _):
        assert (await error_of(api, 400, **fields))["param"] == param


async def test_an_unknown_model_is_named(model: Path) -> None:
    async with open_tracing(model) as (api, _):
        assert (await error_of(api, 404, model="other"))["code"] == "model_not_found"


@pytest.mark.parametrize(
    ("word", "code", "text"),
    [
        ("too large", "too_large", "It is too large. Serve a smaller model, or free memory."),
        ("unsupported", "unsupported", "It is unsupported."),
        ("unreadable", "unreadable", "cannot be read for traces"),
        ("lost", "unavailable", "was lost. Try again."),
        ("slow", "unavailable", "more than 120 s of processor time"),
        ("full", "unavailable", "The memory for traces is used up."),
    ],
)
async def test_what_the_process_cannot_do_is_an_error_with_its_reason(word: str, code: str, text: str) -> None:
    async with open_tracing(word) as (api, tracer):
        error = await error_of(api, 503)
        assert error["code"] == code
        assert text in error["message"]
        assert tracer.pids == []


async def test_a_killed_process_is_replaced_with_the_next_trace(model: Path) -> None:
    async with open_tracing(model) as (api, tracer):
        answered(await api.http.post(PATH, json={"text": "hi"}))
        os.kill(tracer.pids[0], signal.SIGKILL)
        assert (await error_of(api, 503))["code"] == "unavailable"
        answered(await api.http.post(PATH, json={"text": "hi"}))


async def test_a_process_whose_client_has_left_ends_when_its_trace_is_over() -> None:
    async with open_tracing("waits", idle_seconds=0.1) as (_, tracer):
        request: dict[str, Any] = {"token_ids": [1], "layer": 0}
        trace = asyncio.create_task(tracer.trace("fake", request, ""))
        async with asyncio.timeout(60):
            while not tracer.pids:
                await asyncio.sleep(0.02)
            trace.cancel()
            await asyncio.sleep(0.5)  # the timer finds the process at work, and tries again
            os.kill(tracer.pids[0], signal.SIGKILL)
            while tracer.pids:
                await asyncio.sleep(0.02)


async def test_a_waiting_trace_whose_client_has_left_makes_room_for_another() -> None:
    async with open_tracing("waits") as (api, tracer):
        running, *waiting = (AsgiRequest(api.app, PATH, {"text": "hi"}) for _ in range(MAX_WAITING_PER_KEY + 1))
        await until(lambda: sum(map(len, tracer._turns._waiting.values())) == MAX_WAITING_PER_KEY)
        for request in waiting:
            request.leave()
            await request.end()
        assert not any(tracer._turns._waiting.values())
        running.leave()
        await running.end()


async def test_a_closed_tracer_starts_no_process(model: Path) -> None:
    async with open_tracing(model) as (api, tracer):
        started = tracer._start

        def start_late() -> WorkerProcess:
            tracer._is_closed = True
            return started()

        tracer._start = start_late
        assert (await error_of(api, 503))["code"] == "unavailable"
        assert tracer.pids == []


async def test_threat_39_one_trace_runs_and_few_wait() -> None:
    async with open_tracing("waits") as (api, tracer):
        posts = [asyncio.create_task(api.http.post(PATH, json={"text": "hi"})) for _ in range(MAX_WAITING_PER_KEY + 1)]
        async with asyncio.timeout(60):
            while not tracer.pids:
                await asyncio.sleep(0.02)
        error = await error_of(api, 429)
        assert f"limit of {MAX_WAITING_PER_KEY} waiting traces" in error["message"]
        (pid,) = tracer.pids
        for post in posts[1:]:
            post.cancel()
        await asyncio.to_thread(tracer.close)
        assert (await posts[0]).status_code == 503
    eventually(lambda: not is_alive(pid))
