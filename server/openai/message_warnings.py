"""Warnings about messages: what a conversation says that does not reach the model as it was meant."""

import re

from server.openai.fields import NoEffect
from server.openai.messages import Conversation, Message
from server.openai.template_messages import REASONING_NAMES
from server.served_model import ServedModel

_NAME_IN_TEMPLATE = re.compile(r"""message(?:\.name\b|\[['"]name['"]\])""")


def message_warnings(served: ServedModel, request: Conversation) -> list[str]:
    """Return a sentence for each field of messages without effect, and for arguments of calls that are not JSON."""
    messages = request.messages
    source = served.chat_template.source if served.chat_template is not None else ""
    without_effect = [
        name
        for name, field in Message.model_fields.items()
        if any(isinstance(mark, NoEffect) for mark in field.metadata)
    ]
    warnings = [
        f"`messages[].{name}` has no effect on this server."
        for name in without_effect
        if any(name in message.model_fields_set for message in messages)
    ]
    if any(message.name is not None for message in messages) and not _NAME_IN_TEMPLATE.search(source):
        warnings.append("`messages[].name` has no effect with the chat template of this model.")
    if not any(re.search(rf"\b{name}\b", source) for name in REASONING_NAMES):
        warnings += [
            f"`messages[].{name}` has no effect with the chat template of this model."
            for name in ("reasoning_content", "reasoning", "reasoning_details")
            if any(getattr(message, name) for message in messages)
        ]
    if not all(call.function.has_object for message in messages for call in message.tool_calls):
        warnings.append(
            "`messages[].tool_calls[].function.arguments` of a call is not a JSON object; the model reads it as text."
        )
    return warnings
