"""Template messages: a conversation in the form that a chat template takes, and warnings about what it leaves out."""

import re
from collections.abc import Collection, Sequence

from caravan.server.generation.text_model import TextModel
from caravan.server.openai.protocol.messages import Conversation, Message
from caravan.server.openai.protocol.thinking_fields import ThinkingFields
from caravan.server.openai.protocol.tools import ToolCall, parsed_arguments
from caravan.server.sandbox.special_tokens import Json
from caravan.server.sandbox.template_shape import TemplateShape, text_part

# A template that writes earlier reasoning reads it under one of these names.
REASONING_NAMES = ("reasoning_content", "reasoning", "thinking")


def plain_messages(messages: Sequence[Message], source: str) -> list[dict[str, Json]]:
    """Return the messages as they were sent, without the fields that have no effect.

    The template's `source` decides which fields hold the reasoning, and whether the role developer becomes system.
    """
    return [_plain(message, source) for message in messages]


def shaped_messages(
    messages: list[dict[str, Json]], shape: TemplateShape, special_tokens: Collection[str]
) -> list[dict[str, Json]]:
    """Return plain messages in the form that a template takes."""
    if not shape.takes_several_calls:
        messages = _with_single_calls(messages)
    return [_shaped(message, shape, special_tokens) for message in messages]


def _with_single_calls(messages: list[dict[str, Json]]) -> list[dict[str, Json]]:
    """Return the messages with one call in each, its results after it."""
    single: list[dict[str, Json]] = []
    rest = list(messages)
    while rest:
        message = rest.pop(0)
        calls = message.get("tool_calls")
        if not isinstance(calls, list) or len(calls) < 2:
            single.append(message)
            continue
        num_results = next((index for index, one in enumerate(rest) if one["role"] != "tool"), len(rest))
        results, rest = rest[:num_results], rest[num_results:]
        for index, call in enumerate(calls):
            assert isinstance(call, dict)
            content = message["content"] if index == 0 else None
            single.append({**message, "content": content, "tool_calls": [call]})
            own = [result for result in results if result.get("tool_call_id") == call["id"]]
            if any(isinstance(other, dict) and other["id"] == call["id"] for other in calls[index + 1 :]):
                own = own[:1]  # the other results are of the calls with the same id
            single += own
            results = [result for result in results if not any(result is one for one in own)]
        single += results
    return single


def _shaped(message: dict[str, Json], shape: TemplateShape, special_tokens: Collection[str]) -> dict[str, Json]:
    result = dict(message)
    calls = message.get("tool_calls")
    if isinstance(calls, list):
        result["tool_calls"] = [_shaped_call(call, shape, special_tokens) for call in calls]
    if isinstance(message.get("tool_call_id"), str):
        result["tool_call_id"] = shape.call_id(str(message["tool_call_id"]))
    result["content"] = shape.content(str(message["role"]), message["content"], has_calls="tool_calls" in message)
    return result


def _plain(message: Message, source: str) -> dict[str, Json]:
    plain: dict[str, Json] = {"role": message.role, "content": message.content}  # type: ignore[dict-item]  # of strings
    if message.role == "developer" and "developer" not in source:
        plain["role"] = "system"
    if message.refusal:
        plain["content"] = _with_text(plain["content"], message.refusal)
    for name in ("name", "tool_call_id", "reasoning_content", "reasoning"):
        value = getattr(message, name)
        if value is not None:
            plain[name] = value
    if message.tool_calls:
        plain["tool_calls"] = [_plain_call(call) for call in message.tool_calls]
    if message.reasoning_text:
        for name in REASONING_NAMES:
            if name not in plain and re.search(rf"\b{name}\b", source):
                plain[name] = message.reasoning_text
    return plain


def _plain_call(call: ToolCall) -> Json:
    dumped: Json = call.model_dump(exclude_unset=True, exclude={"index"})
    assert isinstance(dumped, dict)
    function: Json = {"name": call.function.name, "arguments": call.function.arguments.strip() or "{}"}
    return {**dumped, "function": function}


def _shaped_call(call: Json, shape: TemplateShape, special_tokens: Collection[str]) -> Json:
    assert isinstance(call, dict)
    function = call["function"]
    assert isinstance(function, dict)
    text = str(function["arguments"])
    arguments = shape.arguments(text, parsed_arguments(text, special_tokens))
    return {**call, "id": shape.call_id(str(call["id"])), "function": {**function, "arguments": arguments}}


def _with_text(content: Json, text: str) -> Json:
    if isinstance(content, list):
        return [*content, text_part(text)]
    return f"{content or ''}{text}"


def variable_warnings(model: TextModel, request: Conversation) -> list[str]:
    """Return a warning for each field whose variables the chat template does not have."""
    if model.chat_template is None:
        return []
    template = model.chat_template.for_tools() if request.shown_tools else model.chat_template
    variables = request.template_variables()
    known = {given.param for name, given in variables.items() if template.names(name)}
    switch = request.switch
    if switch is not None and (switch.param in known or (switch.value is False and not template.thought_marks)):
        known |= {given.param for given in (request.effort, switch) if given is not None}  # the model does not think
    budget = request.thought_budget if isinstance(request, ThinkingFields) else None
    if budget is not None and not template.thought_marks:
        variables[budget.param] = budget
    unknown = [given.param for given in variables.values() if given.param not in known]
    return [f"`{param}` has no effect with the chat template of this model." for param in dict.fromkeys(unknown)]


_NAME_IN_TEMPLATE = re.compile(r"""message(?:\.name\b|\[['"]name['"]\])""")


def message_warnings(model: TextModel, request: Conversation) -> list[str]:
    """Return a warning for each message field that the template leaves out, and for call arguments that are not JSON.

    The request's own warnings name the fields that have no effect with any model.
    """
    messages = request.messages
    source = model.chat_template.source if model.chat_template is not None else ""
    warnings = []
    if any(message.name is not None for message in messages) and not _NAME_IN_TEMPLATE.search(source):
        warnings.append("`messages[].name` has no effect with the chat template of this model.")
    if not any(re.search(rf"\b{name}\b", source) for name in REASONING_NAMES):
        warnings += [
            f"`messages[].{name}` has no effect with the chat template of this model."
            for name in ("reasoning_content", "reasoning", "reasoning_details")
            if any(getattr(message, name) for message in messages)
        ]
    warnings += variable_warnings(model, request)
    if model.chat_template is not None and any(message.tool_calls and message.content for message in messages):
        template = model.chat_template.for_tools() if request.shown_tools else model.chat_template
        if not template.shape.shows_calls_beside_text:
            warnings.append("`messages[].tool_calls` beside `content` is left out by the chat template of this model.")
        if not template.shape.shows_text_beside_calls:
            warnings.append("`messages[].content` beside `tool_calls` is left out by the chat template of this model.")
    if not all(call.function.has_object for message in messages for call in message.tool_calls):
        warnings.append(
            "`messages[].tool_calls[].function.arguments` of a call is not a JSON object; the model reads it as text."
        )
    return warnings
