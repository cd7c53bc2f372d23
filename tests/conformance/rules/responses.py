"""Responses."""

import json

from tests.conformance.rules.structure import PERSON
from tests.conformance.target import Body, Target

PATH = "/v1/responses"


def texts_are_answered(target: Target) -> None:
    """A text is answered by a text, with its usage."""
    response = target.client.responses.create(model=target.model, input="Say hello.", max_output_tokens=16)
    assert response.object == "response"
    assert response.status in ("completed", "incomplete")
    assert response.output_text
    assert response.usage is not None
    assert response.usage.total_tokens == response.usage.input_tokens + response.usage.output_tokens


def conversations_are_answered(target: Target) -> None:
    """Instructions and a list of messages are read."""
    response = target.client.responses.create(
        model=target.model,
        instructions="Be short.",
        input=[{"role": "user", "content": "Say hello."}],
        max_output_tokens=16,
    )
    assert response.output_text


def schemas_are_kept(target: Target) -> None:
    """`text.format` with a schema makes the answer one of it."""
    response = target.client.responses.create(
        model=target.model,
        input="Describe a person.",
        text={"format": {"type": "json_schema", "name": "person", "schema": PERSON, "strict": True}},
    )
    assert set(json.loads(response.output_text)) == {"name", "age"}


def streams_have_named_events(target: Target) -> None:
    """A stream begins with response.created, ends with response.completed or incomplete, and numbers its events."""
    with target.client.responses.create(
        model=target.model, input="Say hello.", max_output_tokens=16, stream=True
    ) as stream:
        events = list(stream)
    assert events[0].type == "response.created"
    assert events[-1].type in ("response.completed", "response.incomplete")
    assert [event.sequence_number for event in events] == list(range(len(events)))
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == events[-1].response.output_text


def sampling_is_that_of_chats(target: Target) -> None:
    """`top_k`, `min_p`, `seed`, `stop`, penalties and `logit_bias` mean what they mean in a chat."""
    body = {"model": target.model, "input": "Say hello.", "max_output_tokens": 12, "top_k": 1}
    text = _text(target.post(PATH, body).json())
    assert text == _text(target.post(PATH, body | {"min_p": 1.0, "seed": 3, "repetition_penalty": 1.0}).json())
    assert _text(target.post(PATH, body | {"stop": [text[2:5]]}).json()) == text[: text.index(text[2:5])]
    for fields in ({"min_p": 2}, {"presence_penalty": 3}, {"logit_bias": {"-1": 1}}):
        target.refused(PATH, {"input": "hi", **fields})


def agents_are_answered(target: Target) -> None:
    """What agents send is taken: tools that only OpenAI's servers run, custom tools, reasoning that is played back."""
    tools = [{"type": "web_search"}, {"type": "custom", "name": "edit", "description": "Edit."}]
    items = [
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Say hello."}]},
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": None, "encrypted_content": "x"},
        {"type": "custom_tool_call", "id": "ctc_1", "call_id": "call_1", "name": "edit", "input": "a"},
        {"type": "custom_tool_call_output", "call_id": "call_1", "output": "done"},
    ]
    include = ["reasoning.encrypted_content"]
    body = {"input": items, "tools": tools, "include": include, "store": False, "client_metadata": {"a": "b"}}
    response = target.post(PATH, {"model": target.model, "max_output_tokens": 8, **body}).json()
    assert response["output"], response
    assert any("web_search" in warning for warning in response["warnings"])


def _text(response: Body) -> str:
    return "".join(part["text"] for item in response["output"] for part in item.get("content", []))


def nothing_is_kept(target: Target) -> None:
    """What needs a memory of earlier responses is refused, not ignored."""
    target.refused(PATH, {"input": "hi", "previous_response_id": "resp_1"})


def wrong_inputs_are_refused(target: Target) -> None:
    """A missing input and an unknown field are refused."""
    target.refused(PATH, {})
    target.refused(PATH, {"input": "hi", "nonsense": 1})
