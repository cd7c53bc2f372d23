"""ChatRequest: the chat that is equivalent to a request of /v1/messages, and its errors and warnings."""

import re
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from caravan.server.generation.text_model import TextModel
from caravan.server.http.errors import ApiError
from caravan.server.messages.conversation import Conversation
from caravan.server.messages.protocol.request import MessagesRequest, PromptBody
from caravan.server.openai.protocol.chat import ChatRequest
from caravan.server.openai.protocol.generation_request import SamplingFields
from caravan.server.openai.protocol.strict_model import ignored_fields, ignored_warnings
from caravan.server.openai.protocol.validation import first_problem
from caravan.server.openai.template_messages import message_warnings
from caravan.server.sandbox.template_shape import TemplateShape

FORMAT = "output_config.format"
_NAMES = {  # paths in the chat, and in the request
    "response_format.json_schema.schema": f"{FORMAT}.schema",
    "response_format.json_schema": FORMAT,
    "response_format": FORMAT,
    "reasoning_effort": "output_config.effort",
    "stop": "stop_sequences",
    "continue_final_message": "messages",
}
_PHRASES = {  # in warnings
    "`messages[].reasoning_content` has": "Blocks of type `thinking` have",
    "`messages[].tool_calls` beside `content` is": "Blocks of type `tool_use` beside text are",
    "`messages[].content` beside `tool_calls` is": "Text beside blocks of type `tool_use` is",
    "`response_format`": f"`{FORMAT}`",
    "`reasoning_effort`": "`output_config.effort`",
}


@dataclass(frozen=True)
class EquivalentChat:
    """A chat, and the request that it was made from."""

    request: ChatRequest
    body: PromptBody
    conversation: Conversation

    @property
    def ignored(self) -> dict[str, str]:
        """A warning for each field, block and tool of the request that has no effect, by path."""
        fields = ignored_fields(self.body)
        warnings = dict(zip(fields, ignored_warnings(fields), strict=True)) | self.conversation.ignored
        for kind in self.body.server_tools:
            warnings[f"tools[].{kind}"] = f"Tools of type `{kind}` are left out: this server does not have them."
        return warnings

    def warnings(self, model: TextModel) -> list[str]:
        """Return all warnings about the request."""
        found = [*self.ignored.values(), *self.request.warnings(), *message_warnings(model, self.request)]
        return list(dict.fromkeys(map(_renamed_warning, found)))

    def renamed(self, error: ApiError) -> ApiError:
        """Return an error of the chat with the names of the request's fields."""
        return _renamed(error, self.body, self.conversation)


def equivalent_chat(model: TextModel, body: PromptBody) -> EquivalentChat:
    """Return the chat that is equivalent to a request; raises ApiError, whose message names the request's fields."""
    conversation = Conversation(body, _shape(model, body))
    fields = _chat_fields(body, conversation)
    try:
        return EquivalentChat(ChatRequest.model_validate(fields), body, conversation)
    except ValidationError as error:
        raise _renamed(first_problem(error, fields), body, conversation) from None
    except ApiError as error:
        raise _renamed(error, body, conversation) from None


def _shape(model: TextModel, body: PromptBody) -> TemplateShape:
    """Return the shape of the template that will render the request."""
    if model.chat_template is None:
        return TemplateShape()
    return (model.chat_template.for_tools() if body.shows_tools else model.chat_template).shape


def _chat_fields(body: PromptBody, conversation: Conversation) -> dict[str, Any]:
    """Return the body of the chat; `max_tokens` is left out, as it depends on the prompt."""
    chat: dict[str, Any] = {"model": body.model, "messages": conversation.messages}
    chat["tools"] = [tool.as_chat_tool() for tool in body.client_tools.values()]
    if conversation.continues_last:
        chat["continue_final_message"] = True
    if body.tool_choice is not None:
        chat["tool_choice"] = body.tool_choice.as_chat_choice()
        chat["parallel_tool_calls"] = not body.tool_choice.disable_parallel_tool_use
    if body.thinking is not None:
        kind = "adaptive" if body.thinking.type == "between_tools" else body.thinking.type
        chat["thinking"] = {"type": kind, "budget_tokens": body.thinking.budget_tokens}
    output = body.output_config
    if output is not None and output.effort is not None:
        chat["reasoning_effort"] = output.effort
    if output is not None and output.format is not None:
        named = {"name": "output", "schema": output.format.definition}
        chat["response_format"] = {"type": "json_schema", "json_schema": named}
    if body.chat_template_kwargs:
        chat["chat_template_kwargs"] = body.chat_template_kwargs
    if isinstance(body, MessagesRequest):
        chat["stream"] = body.stream
        given = {name for name in SamplingFields.model_fields if name in body.model_fields_set}
        chat |= {name: getattr(body, name) for name in given}
        if "logit_bias" in chat:
            chat["logit_bias"] = {str(token_id): bias for token_id, bias in body.logit_bias.items()}
        chat |= {"temperature": body.temperature, "top_p": body.top_p}
        if body.stop_sequences:
            chat["stop"] = body.stop_sequences
    return {name: value for name, value in chat.items() if value is not None}


def _renamed(error: ApiError, body: PromptBody, conversation: Conversation) -> ApiError:
    old = error.param or ""
    message = re.match(r"messages\[(\d+)\]", old)
    tool = re.match(r"tools\[(\d+)\]", old)
    new = old
    if message:
        new = conversation.places[int(message[1])] + old.removeprefix(message[0])
    elif tool:
        place = [*body.client_tools][int(tool[1])]
        rest = old.removeprefix(tool[0]).removeprefix(".function").replace(".parameters", ".input_schema")
        new = f"tools[{place}]{rest}"
    elif not (old == "stop" and isinstance(body, MessagesRequest) and body.stop):
        name = next((name for name in _NAMES if old == name or old.startswith((f"{name}.", f"{name}["))), "")
        new = _NAMES.get(name, "") + old.removeprefix(name)
    text = error.message.replace(f"`{old}", f"`{new}", 1) if old else error.message
    return ApiError(
        error.status, text, kind=error.kind, param=new or None, code=error.code, retry_after=error.retry_after
    )


def _renamed_warning(warning: str) -> str:
    for old, new in _PHRASES.items():
        warning = warning.replace(old, new)
    return warning
