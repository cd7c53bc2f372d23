"""A server with a tiny model: messages survive the kill of the engine, and cached tokens grow with a session."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.server.openai.api import CHAT_ML, Body
from tests.support.message_events import MESSAGES, gathered, parsed_events, shown
from tests.support.running_server import RunningServer, running_server

pytestmark = pytest.mark.slow

LONG: Body = {
    "model": "tiny",
    "max_tokens": 300,
    "messages": [{"role": "user", "content": "hello"}],
    "ignore_eos": True,
    "temperature": 1.0,
    "seed": 7,
}


@pytest.fixture(scope="module")
def server(tiny_model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    template = tmp_path_factory.mktemp("template") / "chat.jinja"
    template.write_text(CHAT_ML)
    with running_server(tiny_model_path, "--kv-cache-memory", "256KiB", "--chat-template", str(template)) as running:
        yield running


def test_a_message_goes_on_after_the_kill_of_the_engine(server: RunningServer) -> None:
    whole = server.http.post(MESSAGES, json=LONG).json()
    restarts = server.metric("engine_restarts_total")
    again = LONG | {"stream": True, "cache_salt": "again"}  # without draft tokens from the message above
    with server.http.stream("POST", MESSAGES, json=again) as response:
        parts = response.iter_text()
        text = next(parts)
        server.kill_engine()
        text += "".join(parts)
    message = gathered(parsed_events(text))
    assert shown(message) == shown(whole)
    assert message["usage"]["output_tokens"] == whole["usage"]["output_tokens"] == 300
    assert message["stop_reason"] == "max_tokens"
    assert server.metric("engine_restarts_total") == restarts + 1


def test_cached_tokens_grow_with_a_session_whose_system_messages_come_late(server: RunningServer) -> None:
    session: list[Body] = [
        {"role": "user", "content": "The first question of a session."},
        {"role": "system", "content": "A system message that comes late."},
    ]
    cached = []
    for number in range(4):
        body = {"model": "tiny", "max_tokens": 4, "temperature": 0, "system": "Be kind.", "messages": session}
        message = server.http.post(MESSAGES, json=body).json()
        usage = message["usage"]
        cached.append(usage["cache_read_input_tokens"])
        assert usage["input_tokens"] > 0
        count = server.http.post(f"{MESSAGES}/count_tokens", json=body).json()["input_tokens"]
        assert usage["input_tokens"] + usage["cache_read_input_tokens"] == count
        session += [
            {"role": "assistant", "content": "An answer."},
            {"role": "user", "content": f"Another question, number {number}."},
        ]
    assert cached[0] == 0
    assert cached == sorted(set(cached)), cached


def test_messages_wait_for_room_and_stay_the_same(server: RunningServer) -> None:
    """More streams than the pool has room for are preempted; each is that of a request alone."""
    body = LONG | {"messages": [{"role": "user", "content": "alone"}]}
    alone = shown(server.http.post(MESSAGES, json=body).json())
    preemptions = server.metric("num_preemptions_total")

    def ask(number: int) -> list[Body]:
        stream = body | {"stream": True, "cache_salt": str(number)}
        return shown(gathered(parsed_events(server.http.post(MESSAGES, json=stream).text)))

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, range(8))) == [alone] * 8
    assert server.metric("num_preemptions_total") > preemptions


def test_a_request_for_no_token_fills_the_prefix_cache(server: RunningServer) -> None:
    body: Body = {
        "model": "tiny",
        "messages": [{"role": "user", "content": "A prompt to be computed before it is needed."}],
    }
    first = server.http.post(MESSAGES, json=body | {"max_tokens": 0}).json()
    assert first["usage"]["output_tokens"] == 0
    second = server.http.post(MESSAGES, json=body | {"max_tokens": 1}).json()
    assert second["usage"]["cache_read_input_tokens"] > first["usage"]["cache_read_input_tokens"]
