"""The body of POST /v1/responses, and how it reads as a chat."""

from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, model_validator

from server.openai.errors import invalid
from server.openai.fields import Ignored, NoEffect, Only, SchemaField, Unsupported
from server.openai.response_format import JsonObjectFormat, TextFormat
from server.openai.schemas import MAX_LOGPROBS, ignored_warnings
from server.openai.strict_model import StrictModel
from server.openai.tool_schemas import MAX_TOOLS, FunctionName, strictness_warnings


class NamedSchemaFormat(StrictModel):
    """JSON that a schema allows."""

    type: Literal["json_schema"]
    name: str = Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")
    description: Annotated[str | None, NoEffect()] = Field(None, max_length=4096)
    definition: SchemaField = Field(alias="schema")
    strict: bool = Field(True, description="Schemas are always enforced.")


class TextOptions(StrictModel):
    """The form of the text."""

    format: Annotated[TextFormat | JsonObjectFormat | NamedSchemaFormat, Discriminator("type")] = TextFormat(
        type="text"
    )
    verbosity: Ignored = None


class FunctionTool(StrictModel):
    """A function that the model may call."""

    type: Literal["function"]
    name: FunctionName
    description: str | None = Field(None, max_length=16384)
    parameters: SchemaField = Field({}, description="JSON schema of the arguments, an object.")
    strict: bool = Field(True, description="Arguments of required calls always keep to the schema.")


class ResponsesRequest(StrictModel):
    """The body of POST /v1/responses. Nothing is kept: each request brings the whole conversation."""

    model: str
    input: str | Annotated[list[dict[str, Any]], Field(fail_fast=True)] = Field(
        description="A text, or messages, function calls and their outputs."
    )
    instructions: str | None = None
    max_output_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    top_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    include: list[Literal["message.output_text.logprobs"]] = Field([], fail_fast=True)
    text: TextOptions = Field(TextOptions())
    tools: list[FunctionTool] = Field([], max_length=MAX_TOOLS)
    tool_choice: str | dict[str, Any] = "auto"
    parallel_tool_calls: bool = True
    stream: bool = False
    metadata: dict[str, str] = Field({}, max_length=16, description="Comes back as it is.")
    priority: int = Field(0, ge=-1000, le=1000)
    cache_salt: str = Field("", max_length=256)
    explain: bool = Field(False, description="The response tells what became of the request, moment by moment.")

    previous_response_id: Unsupported = Field(None, description="Nothing is kept; send the whole conversation.")
    conversation: Unsupported = None
    prompt: Unsupported = None
    max_tool_calls: Unsupported = None
    background: Annotated[Any, Only(None, False)] = None
    truncation: Annotated[Any, Only(None, "disabled")] = None

    store: Annotated[bool, NoEffect()] = False
    reasoning: Ignored = None
    stream_options: Ignored = None
    user: Ignored = None
    safety_identifier: Ignored = None
    prompt_cache_key: Ignored = None
    prompt_cache_retention: Ignored = None
    service_tier: Ignored = None

    @property
    def wants_logprobs(self) -> bool:
        """The parts of the text come with their log-probabilities."""
        return bool(self.include) or self.top_logprobs is not None

    @model_validator(mode="after")
    def _input_is_not_empty(self) -> Self:
        if not self.input:
            raise invalid("`input` is empty; it must have a text or an item.", "input")
        return self

    @property
    def places(self) -> list[str]:
        """Where each message of the chat comes from."""
        return [place for place, _ in self._placed_messages()]

    def _placed_messages(self) -> list[tuple[str, dict[str, Any]]]:
        messages: list[tuple[str, dict[str, Any]]] = []
        if self.instructions is not None:
            messages.append(("instructions", {"role": "system", "content": self.instructions}))
        if isinstance(self.input, str):
            return [*messages, ("input", {"role": "user", "content": self.input})]
        for index, item in enumerate(self.input):
            _add_item(messages, item, f"input[{index}]")
        return messages

    def as_chat(self) -> dict[str, Any]:
        """Return the body of the chat that asks for the same; raises ApiError for an input it does not know."""
        messages = [message for _, message in self._placed_messages()]
        chat: dict[str, Any] = {"model": self.model, "messages": messages, "stream": self.stream}
        chat |= {"tools": [_chat_tool(tool) for tool in self.tools], "parallel_tool_calls": self.parallel_tool_calls}
        chat |= {"tool_choice": _chat_choice(self.tool_choice), "response_format": _chat_format(self.text)}
        chat |= {"max_completion_tokens": self.max_output_tokens, "temperature": self.temperature, "top_p": self.top_p}
        chat |= {"priority": self.priority, "cache_salt": self.cache_salt}
        if self.wants_logprobs:
            chat |= {"logprobs": True, "top_logprobs": self.top_logprobs or 0}
        return {name: value for name, value in chat.items() if value is not None}

    def warnings(self) -> list[str]:
        """Return a sentence for each field of the request that has no effect."""
        warnings = ignored_warnings(self) + ignored_warnings(self.text, "text.")
        if isinstance(self.text.format, NamedSchemaFormat):
            warnings += ignored_warnings(self.text.format, "text.format.")
            if "strict" in self.text.format.model_fields_set and not self.text.format.strict:
                warnings.append("`text.format.strict` has no effect: schemas are always enforced.")
        choice = self.tool_choice if isinstance(self.tool_choice, str) else "named"
        return warnings + strictness_warnings(self.tools, choice)


def _add_item(messages: list[tuple[str, dict[str, Any]]], item: dict[str, Any], param: str) -> None:
    match item.get("type", "message"):
        case "message":
            known = {"type", "role", "content", "id", "status"}
            _check_keys(item, known, param)
            content = _text(item.get("content"), f"{param}.content")
            if item.get("role") == "assistant" and messages and messages[-1][1].get("tool_calls"):
                # The text of an answer after its calls: one turn of the assistant, as a chat would give it.
                messages[-1][1]["content"] = f"{messages[-1][1]['content'] or ''}{content}"
            else:
                messages.append((param, {"role": item.get("role"), "content": content}))
        case "function_call":
            _check_keys(item, {"type", "id", "call_id", "name", "arguments", "status"}, param)
            function = {"name": item.get("name"), "arguments": item.get("arguments")}
            call = {"id": item.get("call_id"), "type": "function", "function": function}
            if messages and messages[-1][1]["role"] == "assistant":
                messages[-1][1].setdefault("tool_calls", []).append(call)
            else:
                messages.append((param, {"role": "assistant", "content": None, "tool_calls": [call]}))
        case "function_call_output":
            _check_keys(item, {"type", "id", "call_id", "output", "status"}, param)
            content = _text(item.get("output"), f"{param}.output")
            messages.append((param, {"role": "tool", "tool_call_id": item.get("call_id"), "content": content}))
        case other:
            raise invalid(
                f"`{param}` is of type {str(other)[:60]}; it can be message, function_call, or its output.", param
            )


def _check_keys(item: dict[str, Any], known: set[str], param: str) -> None:
    for name in item:
        if name not in known:
            raise invalid(f"Unknown field `{param}.{name[:64]}`.", f"{param}.{name[:64]}")
    for name in ("id", "status", "call_id", "name"):
        if not isinstance(item.get(name), str | None):
            raise invalid(f"`{param}.{name}` must be a string.", f"{param}.{name}")


def _text(content: Any, param: str) -> str:
    """Return the text of a content that is a string or a list of parts."""
    if isinstance(content, str):
        return content
    texts: list[str] = []
    for index, part in enumerate(content if isinstance(content, list) else [None]):
        known = part if isinstance(part, dict) else {}
        for name in known:
            if name not in ("type", "text", "annotations", "logprobs"):  # the latter two are in our own answers
                raise invalid(f"Unknown field `{param}[{index}].{name[:64]}`.", f"{param}[{index}].{name[:64]}")
        if known.get("type") not in ("input_text", "output_text", "text") or not isinstance(known.get("text"), str):
            raise invalid(f"`{param}` must be a string or a list of text parts.", param)
        texts.append(known["text"])
    return "".join(texts)


def _chat_tool(tool: FunctionTool) -> dict[str, Any]:
    return {"type": "function", "function": tool.model_dump(exclude_unset=True, exclude={"type"})}


def _chat_choice(choice: str | dict[str, Any]) -> Any:
    if isinstance(choice, dict) and set(choice) == {"type", "name"} and choice["type"] == "function":
        return {"type": "function", "function": {"name": choice["name"]}}
    return choice


def _chat_format(text: TextOptions) -> dict[str, Any]:
    if isinstance(text.format, NamedSchemaFormat):
        named = text.format.model_dump(exclude_unset=True, exclude={"type"}, by_alias=True)
        return {"type": "json_schema", "json_schema": named}
    return {"type": text.format.type}
