"""Warnings about messages: what a conversation says that does not reach the model as it was meant."""

import re

from caravan.server.generation.text_model import TextModel
from caravan.server.openai.protocol.messages import Conversation
from caravan.server.openai.template_messages import REASONING_NAMES

_NAME_IN_TEMPLATE = re.compile(r"""message(?:\.name\b|\[['"]name['"]\])""")


def message_warnings(model: TextModel, request: Conversation) -> list[str]:
    """Return a sentence for each field that the template does not write, and for arguments of calls that are not JSON.

    Fields that have no effect on any model are among the warnings of the request itself.
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
