"""pydantic-ai."""

import json

from openai.types.chat import ChatCompletion, ChatCompletionChunk

from tests.conformance.rules.structure import PERSON
from tests.conformance.target import Body, Target

CHAT = "/v1/chat/completions"
FINAL_RESULT: Body = {
    "type": "function",
    "function": {"name": "final_result", "description": "The final answer.", "parameters": PERSON, "strict": True},
}
QUESTION: list[Body] = [
    {"role": "system", "content": "Answer with a person."},
    {"role": "user", "content": "Who are you?"},
]


def answers_are_valid(target: Target) -> None:
    """An answer is valid in the official client's strict type, which it checks."""
    request = {"messages": QUESTION, "stream": False, "max_completion_tokens": 6}
    answer = ChatCompletion.model_validate(target.answer_to(CHAT, request))
    assert answer.choices[0].finish_reason in ("stop", "length")
    assert answer.usage is not None
    assert answer.created > 0


def chunks_are_valid(target: Target) -> None:
    """Every chunk of a stream is valid in the official client's type, and the last one has the usage."""
    request = {"messages": QUESTION, "stream_options": {"include_usage": True}, "max_completion_tokens": 6}
    chunks = [ChatCompletionChunk.model_validate(chunk) for chunk in target.chunks_of(CHAT, request)]
    assert chunks[-1].usage is not None
    assert not chunks[-1].choices
    assert chunks[-2].choices[0].finish_reason in ("stop", "length")


def results_are_calls_of_a_tool(target: Target) -> None:
    """An output type is a tool that must be called; its arguments are of the type's schema."""
    request = {"messages": QUESTION, "tools": [FINAL_RESULT], "tool_choice": "required", "stream": False}
    (choice,) = target.answer_to(CHAT, request | {"parallel_tool_calls": False})["choices"]
    (call,) = choice["message"]["tool_calls"]
    assert call["function"]["name"] == "final_result"
    assert set(json.loads(call["function"]["arguments"])) == {"name", "age"}


def native_output_is_a_schema(target: Target) -> None:
    """NativeOutput is a schema with a description, which is named as a field without effect."""
    schema = {"name": "Person", "description": "A person.", "schema": PERSON, "strict": True}
    request = {"messages": QUESTION, "response_format": {"type": "json_schema", "json_schema": schema}}
    answer = target.answer_to(CHAT, request | {"stream": False})
    assert set(json.loads(answer["choices"][0]["message"]["content"])) == {"name", "age"}
    assert any("description" in warning for warning in answer["warnings"])


def rejected_results_are_sent_back(target: Target) -> None:
    """A result that it rejects goes back as a tool's answer, and the next call answers it."""
    call = {"id": "call_1", "type": "function", "function": {"name": "final_result", "arguments": '{"name": "A"}'}}
    retry = [
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "1 validation error: age is missing. Fix it."},
    ]
    request = {"messages": [*QUESTION, *retry], "tools": [FINAL_RESULT], "tool_choice": "required", "stream": False}
    (choice,) = target.answer_to(CHAT, request | {"parallel_tool_calls": False})["choices"]
    assert choice["message"]["tool_calls"][0]["id"] != "call_1"
    assert choice["finish_reason"] == "tool_calls"


def thoughts_come_back_under_their_name(target: Target) -> None:
    """Earlier thoughts come back under the name in which they came, and what is no text is refused there."""
    for name in ("reasoning", "reasoning_content"):
        earlier = {"role": "assistant", "content": "Ada, 36.", name: "A name and an age."}
        messages = [*QUESTION, earlier, {"role": "user", "content": "Another one."}]
        answer = target.answer_to(CHAT, {"messages": messages, "stream": False, "max_completion_tokens": 4})
        assert answer["choices"][0]["message"]["role"] == "assistant"
        target.refused(CHAT, {"messages": [*QUESTION, earlier | {name: 5}, {"role": "user", "content": "Why?"}]})
