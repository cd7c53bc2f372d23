"""Claude Code."""

import json
from typing import Any

import anthropic

from tests.conformance.rules.messages import PATH
from tests.conformance.target import Body, Target

EPHEMERAL: Body = {"cache_control": {"type": "ephemeral"}}
HEADERS = {
    "anthropic-version": "2023-06-01",
    "anthropic-beta": "claude-code-20250219,interleaved-thinking-2025-05-14,context-management-2025-06-27",
    "x-app": "cli",
    "x-claude-code-session-id": "0b8e6c1a-0000-4000-8000-000000000000",
}
ENVIRONMENT = "# Environment\nThe working directory is /tmp/project. " + "It has some files. " * 20


def the_first_request_is_answered(target: Target) -> None:
    """`HEAD /api/hello` is answered with nothing."""
    response = target.http.head("/api/hello")
    assert (response.status_code, response.content) == (200, b"")


def the_first_turn_is_streamed(target: Target) -> None:
    """The first turn of a session is streamed to its end: three system blocks, late system text, tools, options."""
    text, usage = _turn(target, _first_turn())
    assert text is not None
    assert usage["output_tokens"] > 0


def the_second_turn_finds_the_first(target: Target) -> None:
    """The second turn, with the system text as a string now, finds the first one in the prefix cache."""
    _turn(target, _first_turn())
    use = {"type": "tool_use", "id": "toolu_01A", "name": "Read", "input": {"file_path": "/tmp/project/a.txt"}}
    thought = {"type": "thinking", "thinking": "The file first.", "signature": "c2lnbmF0dXJl"}
    result = {"tool_use_id": "toolu_01A", "type": "tool_result", "content": "1 line", "is_error": False} | EPHEMERAL
    turns = [
        _first_turn()[0],
        {"role": "system", "content": ENVIRONMENT},
        {"role": "assistant", "content": [thought, {"type": "text", "text": "I read it."}, use]},
        {"role": "user", "content": [result]},
    ]
    _, usage = _turn(target, turns)
    assert usage["cache_read_input_tokens"] > usage["input_tokens"]


def a_failed_tool_is_read(target: Target) -> None:
    """The result of a tool that failed, beside a reminder as text, is read."""
    use = {"type": "tool_use", "id": "toolu_01B", "name": "Read", "input": {}}
    failed = {"tool_use_id": "toolu_01B", "type": "tool_result", "content": "<tool_use_error>No.</tool_use_error>"}
    reminder = {"type": "text", "text": "<system-reminder>Go on.</system-reminder>"}
    turns = [*_first_turn(), {"role": "assistant", "content": [use]}]
    turns.append({"role": "user", "content": [failed | {"is_error": True}, reminder]})
    assert _turn(target, turns)[1]["output_tokens"] > 0


def sessions_share_their_prefix(target: Target) -> None:
    """Another session, with another billing header, finds the prompt of the first one in the prefix cache."""
    _turn(target, _first_turn(), suffix="0b8")
    _, usage = _turn(target, _first_turn(), suffix="34c")
    assert usage["cache_read_input_tokens"] > usage["input_tokens"]


def a_full_context_is_named(target: Target) -> None:
    """A session that exceeds the context gets the words at which Claude Code compacts it."""
    turns = [{"role": "user", "content": "word " * 100_000}]
    response = target.http.post(f"{PATH}?beta=true", json=_body(target, turns), headers=HEADERS)
    assert response.status_code == 400
    words = response.json()["error"]["message"].split()
    assert (words[:4], words[5:7], words[8:]) == (["prompt", "is", "too", "long:"], ["tokens", ">"], ["maximum"])
    assert int(words[4]) > int(words[7])


def the_official_client_reads_messages(target: Target) -> None:
    """Anthropic's client reads a message, a stream and a count, and raises its errors."""
    key = target.http.headers.get("authorization", "Bearer none").removeprefix("Bearer ")
    ask: Body = {"model": target.model, "max_tokens": 8, "messages": [{"role": "user", "content": "Say hello."}]}
    ask["extra_body"] = {"temperature": 0}
    with anthropic.Anthropic(base_url=target.url, api_key=key, max_retries=0) as client:
        message = client.messages.create(**ask)
        with client.messages.stream(**ask) as stream:
            assert "".join(stream.text_stream) == "".join(b.text for b in message.content if b.type == "text")
            assert stream.get_final_message().usage.output_tokens == message.usage.output_tokens
        count = client.messages.count_tokens(model=target.model, messages=[{"role": "user", "content": "Say hello."}])
        assert count.input_tokens == message.usage.input_tokens + (message.usage.cache_read_input_tokens or 0)
        try:
            client.messages.create(**(ask | {"model": "no-such-model"}))
        except anthropic.NotFoundError:
            return
        raise AssertionError("an unknown model is no error")


def _first_turn() -> list[Body]:
    reminder = {"type": "text", "text": "<system-reminder>\nToday is Tuesday.\n</system-reminder>\n"}
    question = {"type": "text", "text": "Read a.txt."} | EPHEMERAL
    system = {"role": "system", "content": [{"type": "text", "text": ENVIRONMENT}]}
    return [{"role": "user", "content": [reminder, question]}, system]


def _body(target: Target, turns: list[Body], suffix: str = "0b8") -> Body:
    """Return the body of a request in the shape of version 2.1, with fewer and shorter texts."""
    billing = f"x-anthropic-billing-header: cc_version=2.1.332.{suffix}; cc_entrypoint=sdk-cli;"
    texts = ("You are an agent for code.", "Use the tools. " * 20)
    schema = {"type": "object", "properties": {"file_path": {"type": "string"}}, "required": ["file_path"]}
    names = ("Read", "Write", "Edit", "Bash")
    return {
        "model": target.model,
        "messages": turns,
        "system": [{"type": "text", "text": billing}, *({"type": "text", "text": one} | EPHEMERAL for one in texts)],
        "tools": [
            *({"name": name, "description": f"{name} a file.", "input_schema": schema} for name in names),
            {"name": "Later", "description": "Loaded later.", "input_schema": {}, "defer_loading": True},
        ],
        "metadata": {"user_id": json.dumps({"device_id": "a", "account_uuid": "", "session_id": "b"})},
        "max_tokens": 32000,
        "thinking": {"type": "adaptive", "display": "omitted"},
        "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        "output_config": {"effort": "high"},
        "stream": True,
        "stop_sequences": ["\n\n", ". "],  # of ours: an answer of a small model may have no end
    }


def _turn(target: Target, turns: list[Body], **options: Any) -> tuple[str, Body]:
    """Return the text of a streamed turn, which must end as streams do, and its usage."""
    response = target.http.post(f"{PATH}?beta=true", json=_body(target, turns, **options), headers=HEADERS)
    assert response.status_code == 200, f"status {response.status_code}: {response.text[:200]}"
    blocks = [block for block in response.text.removesuffix("\n\n").split("\n\n") if not block.startswith(":")]
    events: list[Body] = [json.loads(block.partition("\ndata: ")[2]) for block in blocks]
    assert (events[0]["type"], events[-1]["type"]) == ("message_start", "message_stop")
    deltas = [event["delta"] for event in events if event["type"] == "content_block_delta"]
    return "".join(delta.get("text", "") for delta in deltas), events[-2]["usage"]
