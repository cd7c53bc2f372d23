"""guidellm."""

from tests.conformance.target import Body, Target, text_of

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
STREAMED: Body = {
    "stream_options": {"include_usage": True, "continuous_usage_stats": True},
    "stop": None,
    "ignore_eos": True,
}


def it_looks_before_it_starts(target: Target) -> None:
    """It asks for `/health` and, without a name, for the first model of the list."""
    assert target.http.get("/health").status_code == 200
    assert target.http.get("/v1/models").json()["data"][0]["id"]


def every_token_is_asked_for(target: Target) -> None:
    """A text has exactly as many tokens as it asks for, whichever field says so."""
    prompt = {"prompt": "Write a short story.", "max_tokens": 24}
    parts = [{"type": "text", "text": "Write a short story."}]
    chat = {"messages": [{"role": "user", "content": parts}], "max_completion_tokens": 24}
    for path, fields in ((COMPLETIONS, prompt), (CHAT, chat)):
        chunks = target.chunks_of(path, STREAMED | fields)
        assert chunks[-1]["usage"]["completion_tokens"] == 24
        assert text_of(chunks)


def running_totals_are_read(target: Target) -> None:
    """Every chunk has the usage so far, which never falls; each has the same prompt."""
    chunks = target.chunks_of(COMPLETIONS, STREAMED | {"prompt": "Write a short story.", "max_tokens": 24})
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert counts == sorted(counts)
    assert counts[0] < counts[-1]
    assert len({chunk["usage"]["prompt_tokens"] for chunk in chunks}) == 1


def tools_take_no_limit(target: Target) -> None:
    """On a turn with tools it sends no limit, and reads the parts of calls by `index`; no list of them is null."""
    tool = {
        "type": "function",
        "function": {
            "name": "look",
            "description": "Look in a direction.",
            "parameters": {
                "type": "object",
                "properties": {"direction": {"enum": ["up", "down"]}},
                "required": ["direction"],
                "additionalProperties": False,
            },
        },
    }
    request: Body = {
        "messages": [{"role": "user", "content": [{"type": "text", "text": "Look up."}]}],
        "tools": [tool],
        "tool_choice": "required",
        "parallel_tool_calls": False,
        "stream_options": STREAMED["stream_options"],
    }
    chunks = target.chunks_of(CHAT, request)
    deltas = [choice["delta"] for chunk in chunks for choice in chunk["choices"]]
    assert all(delta.get("tool_calls", []) is not None for delta in deltas), "`tool_calls` is null"
    parts = [part for delta in deltas for part in delta.get("tool_calls", [])]
    assert {part["index"] for part in parts} == {0}
    assert "".join(part["function"].get("name") or "" for part in parts) == "look"
