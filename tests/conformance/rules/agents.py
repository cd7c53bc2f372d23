"""Agents."""

import json
import re
from typing import Any

from tests.conformance.codex import (
    AGENTS,
    APPLY_PATCH,
    PATCH_PATTERN,
    RUN,
    SHAPES,
    a_message,
    function,
    of_unknown_model,
    opening,
    played_back,
    with_additional_tools,
    with_custom_tools,
)
from tests.conformance.target import Body, Target

PATH = "/v1/responses"
DIGITS: Body = {
    "type": "custom",
    "name": "dial",
    "description": "Dial a number.",
    "format": {"type": "grammar", "syntax": "regex", "definition": r"\+?[0-9]{3,5}"},
}
LISTS: Body = {
    "type": "custom",
    "name": "compute",
    "format": {
        "type": "grammar",
        "syntax": "lark",
        "definition": 'start: item\nitem: DIGIT | "(" item "+" item ")"\nDIGIT: /[0-9]/',
    },
}


def _whole(target: Target, body: Body) -> Body:
    sent = {"model": target.model, "max_output_tokens": 12} | body | {"stream": False}
    response = target.post(PATH, sent)
    assert response.status_code == 200, f"status {response.status_code}: {response.text[:200]}"
    answer: Body = response.json()
    return answer


def _events(target: Target, body: Body) -> list[Body]:
    sent = {"model": target.model, "max_output_tokens": 12} | body | {"stream": True}
    response = target.post(PATH, sent)
    assert response.status_code == 200, f"status {response.status_code}: {response.text[:200]}"
    blocks = [block.split("\n") for block in response.text.split("\n\n") if block and not block.startswith(":")]
    lines = [line for block in blocks for line in block if line.startswith("data: {")]
    return [json.loads(line.removeprefix("data: ")) for line in lines]


def _called(target: Target, tool: Body, **choice: Any) -> Body:
    """Return the call of a tool that must be called."""
    named = {"type": tool["type"], "name": tool["name"]} | choice
    tools = [tool] if not choice else [AGENTS]
    body = {"input": "Use the tool.", "tools": tools, "tool_choice": named, "max_output_tokens": 200}
    calls = [item for item in _whole(target, body)["output"] if item["type"].endswith("_call")]
    assert len(calls) == 1, f"{len(calls)} calls"
    call: Body = calls[0]
    return call


def first_requests_of_unknown_models_are_answered(target: Target) -> None:
    """A first request with functions, a namespace and a search is answered by items and a usage."""
    last = _events(target, of_unknown_model(opening("Say hello.")))[-1]
    assert last["type"] in ("response.completed", "response.incomplete"), last["type"]
    usage = last["response"]["usage"]
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]


def first_requests_with_custom_tools_are_answered(target: Target) -> None:
    """A first request with a custom tool, its grammar and a verbosity is answered."""
    last = _events(target, with_custom_tools(opening("Say hello.")))[-1]
    assert last["response"]["output"], last["type"]


def first_requests_with_additional_tools_are_answered(target: Target) -> None:
    """A first request whose tools are an item of its input is answered."""
    last = _events(target, with_additional_tools(opening("Say hello.")))[-1]
    assert last["response"]["output"], last["type"]


def every_item_is_done_once(target: Target) -> None:
    """Each item of a stream is added, then done; the last event has the same items."""
    events = _events(target, of_unknown_model(opening("Say hello.")))
    added = [event["item"]["id"] for event in events if event["type"] == "response.output_item.added"]
    done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert added == [item["id"] for item in done] != []
    assert done == events[-1]["response"]["output"]


def lark_grammars_are_kept(target: Target) -> None:
    """The input of a required custom tool is a text of its Lark grammar."""
    call = _called(target, APPLY_PATCH)
    assert call["type"] == "custom_tool_call"
    if call["status"] == "completed":
        assert re.fullmatch(PATCH_PATTERN, call["input"]), call["input"][:80]
    else:  # cut off
        assert call["input"].startswith("*** Begin Patch\n*** "), call["input"][:80]


def recursive_grammars_are_kept(target: Target) -> None:
    """A Lark grammar whose rules refer to themselves is kept, too."""
    text = str(_called(target, LISTS)["input"])
    assert text, "no input"
    assert set(text) <= set("0123456789(+)"), text[:80]
    assert text[0] in "0123456789("


def patterns_are_kept(target: Target) -> None:
    """The input of a required custom tool matches its regular expression."""
    call = _called(target, DIGITS)
    assert re.fullmatch(r"\+?[0-9]{3,5}", call["input"]), call["input"][:80]
    assert (call["type"], call["name"]) == ("custom_tool_call", "dial")


def invalid_grammars_are_refused(target: Target) -> None:
    """A grammar that is none is refused."""
    broken = {**APPLY_PATCH, "format": {"type": "grammar", "syntax": "lark", "definition": "start: ("}}
    target.refused(PATH, {"input": "hi", "tools": [broken]})


def inputs_are_streamed(target: Target) -> None:
    """The deltas of a custom tool's input join to its text, and nothing of its wrapping is shown."""
    choice = {"type": "custom", "name": "dial"}
    body = {"input": "Dial.", "tools": [DIGITS], "tool_choice": choice, "max_output_tokens": 200}
    events = _events(target, body)
    joined = "".join(event["delta"] for event in events if event["type"] == "response.custom_tool_call_input.delta")
    (done,) = (event for event in events if event["type"] == "response.custom_tool_call_input.done")
    assert joined == done["input"]
    assert re.fullmatch(r"\+?[0-9]{3,5}", joined), joined[:80]


def namespaces_are_given_back(target: Target) -> None:
    """A call of a tool in a namespace has its bare name, and the namespace beside it."""
    call = _called(target, function("wait_agent"), namespace="agents")
    assert (call["type"], call["name"], call["namespace"]) == ("function_call", "wait_agent", "agents")


def calls_have_ids(target: Target) -> None:
    """A call has an id of its own and one for its result, and its status."""
    call = _called(target, RUN)
    assert call["id"]
    assert call["call_id"]
    assert call["id"] != call["call_id"]
    assert call["status"] in ("completed", "incomplete")


def turns_are_played_back(target: Target) -> None:
    """Calls and results of all kinds, with ids and statuses, are taken back, and the prefix is found in the cache."""
    calls: list[Body] = [
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm."}]},
        {"type": "function_call", "id": "fc_1", "call_id": "call_1", "name": "exec_command", "arguments": "{}"},
        {"type": "custom_tool_call", "id": "ctc_1", "call_id": "call_2", "name": "apply_patch", "input": "a\nb"},
    ]
    items = [*opening("Go on."), *played_back([{**call, "status": "completed"} for call in calls], "done")]
    first = _whole(target, with_custom_tools(items))
    again = [*items, a_message("assistant", "Done.", id="msg_1", status="completed"), a_message("user", "Thanks.")]
    second = _whole(target, with_custom_tools(again))
    assert second["usage"]["input_tokens"] > first["usage"]["input_tokens"]
    assert second["usage"]["input_tokens_details"]["cached_tokens"] > 0


def answers_are_played_back(target: Target) -> None:
    """The output of each shape of request is taken back as it came."""
    for shape in SHAPES.values():
        output = _whole(target, shape(opening("Say hello.")))["output"]
        answer = _whole(target, shape([*opening("Say hello."), *played_back(output, "ok"), a_message("user", "More.")]))
        assert answer["output"]


def foreign_thoughts_are_dropped(target: Target) -> None:
    """Encrypted reasoning of another server has no effect, which a warning says."""
    thought: Body = {"type": "reasoning", "id": "rs_1", "summary": [], "content": None, "encrypted_content": "gAAAAAB"}
    start, answered = opening("Hi."), [a_message("assistant", "Yes?"), a_message("user", "Say hello.")]
    plain, other = [*start, *answered], [*start, thought, *answered]
    first, second = (_whole(target, with_custom_tools(items)) for items in (plain, other))
    assert first["usage"]["input_tokens"] == second["usage"]["input_tokens"]
    assert any("reasoning" in warning for warning in second["warnings"])


def absent_tools_are_named(target: Target) -> None:
    """Each kind of tool that the server does not have is named in a warning and left out of the prompt."""
    kinds = ["web_search", "tool_search", "image_generation"]
    with_them = _whole(target, {"input": "hi", "tools": [RUN, *({"type": kind} for kind in kinds)]})
    without = _whole(target, {"input": "hi", "tools": [RUN]})
    assert with_them["usage"]["input_tokens"] == without["usage"]["input_tokens"]
    for kind in kinds:
        assert any(kind in warning for warning in with_them["warnings"]), kind


def absent_tools_cannot_be_required(target: Target) -> None:
    """A choice of a tool that the server does not have is refused."""
    target.refused(PATH, {"input": "hi", "tools": [{"type": "web_search"}], "tool_choice": {"type": "web_search"}})


def unknown_items_are_refused(target: Target) -> None:
    """An item of an unknown type is refused, and named by its place."""
    error = target.refused(PATH, {"input": [*opening("hi"), {"type": "telepathy"}]})
    assert "input[3]" in error["message"]
