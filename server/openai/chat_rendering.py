"""Conversations as the model's chat template writes them, and how the responses to them begin."""

import logging
from collections.abc import Collection
from functools import partial

from caravan.server.generation.served_model import ServedModel
from caravan.server.generation.text_model import TextModel
from caravan.server.generation.thought_splitter import Thoughts
from caravan.server.http.errors import invalid
from caravan.server.openai.protocol.messages import Conversation
from caravan.server.openai.template_messages import plain_messages, shaped_messages
from caravan.server.openai.tool_calls.tool_prompt import described
from caravan.server.sandbox.chat_template import ChatTemplate, RenderedPrompt, TemplateFailed, TemplateRefused
from caravan.server.sandbox.special_tokens import Json
from caravan.server.sandbox.template_shape import text_of_content

logger = logging.getLogger(__name__)


async def render_chat(served: ServedModel, request: Conversation, key_name: str) -> RenderedPrompt:
    """Return the conversation as the model's chat template writes it."""
    return await served.executors.templates.run(key_name, partial(rendered_chat, served, request))


def rendered_chat(model: TextModel, request: Conversation) -> RenderedPrompt:
    """Render a conversation as `render_chat` does, in the calling thread."""
    template = model.chat_template
    if template is None:
        raise invalid("This model has no chat template; use /v1/completions.", "messages")
    special_tokens = model.tokenizer.special_tokens
    tools = [tool.model_dump(exclude_unset=True) for tool in request.shown_tools]
    if tools:
        template = template.for_tools()
    messages = plain_messages(request.messages, template.source)
    _check_names([*tools], special_tokens)
    if not template.knows_tools:
        messages, tools = described(messages, tools), []
    add_generation_prompt = request.add_generation_prompt
    if add_generation_prompt is None:
        add_generation_prompt = not request.continue_final_message
    try:
        return template.render(
            shaped_messages(messages, template.shape, special_tokens),
            tools=tools,
            variables=template_variables(model, request, template),
            special_tokens=special_tokens,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=request.continue_final_message,
        )
    except TemplateRefused as error:
        raise invalid(f"The model's chat template refuses these messages: {error}", "messages") from None
    except TemplateFailed as error:
        cause = str(error).partition(":")[0]  # jinja's class of error; its message may quote the client
        logger.error("The chat template failed: %s", ascii(cause))
        raise invalid("The model's chat template cannot be rendered for these messages.", "messages") from None
    except ValueError as error:  # no character is left for the guard
        raise invalid(str(error), "messages") from None


def thoughts_after(model: TextModel, request: Conversation, prompt: str) -> Thoughts | None:
    """Return how the response to a conversation begins, whose prompt is rendered; None for a model without marks."""
    template = model.chat_template
    if template is not None and request.shown_tools:
        template = template.for_tools()
    marks = None if template is None else template.thought_marks
    if marks is None:
        return None
    last = request.messages[-1]
    content = text_of_content(last.content) if request.continue_final_message else ""  # type: ignore[arg-type]  # Json
    start = marks.start_in(content) if content.strip() else marks.start_after(prompt)
    return Thoughts(marks, start)


def template_variables(model: TextModel, request: Conversation, template: ChatTemplate) -> dict[str, Json]:
    """Return the variables that a template gets: those of the request that it names, and the server's other ones."""
    requested = {name: given.value for name, given in request.template_variables().items() if template.names(name)}
    return {**model.template_variables, **requested}


def _check_names(values: Json, special_tokens: Collection[str]) -> None:
    """Raise ApiError for an object's key with the text of a special token: templates write keys unchanged."""
    if isinstance(values, dict):
        for name, value in values.items():
            if any(text in name for text in special_tokens):
                raise invalid("A name in `tools` has the text of a special token; rename it.", "tools")
            _check_names(value, special_tokens)
    elif isinstance(values, list):
        for value in values:
            _check_names(value, special_tokens)
