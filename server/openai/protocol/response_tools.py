"""Response tools: the tools of /v1/responses, and the chat functions that represent them.

A custom tool, whose input is plain text, becomes a function with one string. The tools of a namespace become functions
whose names begin with its name. Tools that OpenAI's servers run, or whose calls have another form, are left out.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field

from caravan.server.openai.protocol.fields import SchemaField
from caravan.server.openai.protocol.known_field import KnownFields
from caravan.server.openai.protocol.known_fields import TOOL
from caravan.server.openai.protocol.strict_model import StrictModel
from caravan.server.openai.protocol.tools import FunctionName
from caravan.server.openai.structured_output.custom_format import arguments_of_format
from caravan.server.openai.structured_output.escaped_pattern import NotEnforceable
from caravan.server.openai.tool_calls.call_format import Arguments

_MAX_NAME = 64  # characters of a function's name in a chat


class FunctionTool(StrictModel):
    """A function that the model may call."""

    known_fields: ClassVar[KnownFields] = TOOL

    type: Literal["function"]
    name: FunctionName
    description: str | None = Field(None, max_length=16384)
    parameters: SchemaField = Field({}, description="JSON schema of the arguments, an object.")
    strict: bool = Field(True, description="Arguments of required calls always keep to the schema.")


class AnyText(StrictModel):
    """Any text as input."""

    type: Literal["text"]


class TextGrammar(StrictModel):
    """The form of an input; the model reads it, and every call keeps to it."""

    type: Literal["grammar"]
    syntax: Literal["lark", "regex"]
    definition: str = Field(max_length=65536)


class CustomTool(StrictModel):
    """A tool whose input is plain text."""

    known_fields: ClassVar[KnownFields] = TOOL

    type: Literal["custom"]
    name: FunctionName
    description: str | None = Field(None, max_length=16384)
    format: Annotated[AnyText | TextGrammar, Discriminator("type")] = AnyText(type="text")


class Namespace(StrictModel):
    """Tools under one name."""

    known_fields: ClassVar[KnownFields] = TOOL

    type: Literal["namespace"]
    name: FunctionName
    description: str | None = Field(None, max_length=16384)
    tools: list[Annotated[FunctionTool | CustomTool, Discriminator("type")]] = Field(max_length=128)


class AbsentTool(BaseModel):
    """A tool that this server does not have; it is not shown to the model."""

    model_config = ConfigDict(extra="ignore")

    type: Literal[
        "web_search",
        "web_search_2025_08_26",
        "web_search_preview",
        "web_search_preview_2025_03_11",
        "file_search",
        "code_interpreter",
        "computer",
        "computer_use_preview",
        "image_generation",
        "mcp",
        "tool_search",
        "local_shell",
        "shell",
        "apply_patch",
    ]


ResponseTool = Annotated[FunctionTool | CustomTool | Namespace | AbsentTool, Discriminator("type")]


@dataclass(frozen=True)
class OfferedTool:
    """A tool that the model may call, with the chat function that represents it."""

    tool: FunctionTool | CustomTool
    namespace: str | None
    lead: str = ""  # precedes its description

    @property
    def function_name(self) -> str:
        """The name of the function."""
        return function_name(self.tool.name, self.namespace)

    def as_chat_tool(self) -> dict[str, Any]:
        """Return the tool of the chat."""
        if isinstance(self.tool, FunctionTool):
            function = self.tool.model_dump(exclude_unset=True, exclude={"type"})
        else:
            text = {"type": "string", "description": "The whole input of the tool."}
            parameters = {"type": "object", "properties": {"input": text}, "required": ["input"]}
            function = {
                "description": self.tool.description,
                "parameters": parameters | {"additionalProperties": False},
            }
            if isinstance(self.tool.format, TextGrammar):
                kind = {"lark": "is a text of this Lark grammar", "regex": "matches this regular expression"}
                rules = f"The input {kind[self.tool.format.syntax]}:\n{self.tool.format.definition}"
                function["description"] = f"{self.tool.description or ''}\n\n{rules}".strip()
        if self.lead:
            function["description"] = f"{self.lead}\n\n{function.get('description') or ''}".strip()
        return {"type": "function", "function": function | {"name": self.function_name}}


def offered_tools(tools: Iterable[ResponseTool]) -> list[OfferedTool]:
    """Return the tools that the model may call; the description of a namespace precedes that of its first tool."""
    offered: list[OfferedTool] = []
    for tool in tools:
        if isinstance(tool, FunctionTool | CustomTool):
            offered.append(OfferedTool(tool, None))
        elif isinstance(tool, Namespace):
            for number, inner in enumerate(tool.tools):
                offered.append(OfferedTool(inner, tool.name, (tool.description or "") if number == 0 else ""))
    return offered


@dataclass(frozen=True)
class EnforcedInputs:
    """The formats of custom tools: those that calls keep to, and those that only the model reads."""

    arguments: dict[str, Arguments]  # by the name of the function
    not_enforced: list[tuple[CustomTool, str]]  # with the reason


def enforced_inputs(tools: Iterable[OfferedTool]) -> EnforcedInputs:
    """Return the formats of the custom tools."""
    inputs = EnforcedInputs({}, [])
    for index, offered in enumerate(tools):
        tool = offered.tool
        if isinstance(tool, CustomTool) and isinstance(tool.format, TextGrammar):
            form = tool.format
            try:
                allowed = arguments_of_format(form.syntax, form.definition, f"input{index}")
                inputs.arguments[offered.function_name] = allowed
            except NotEnforceable as error:
                inputs.not_enforced.append((tool, str(error)))
    return inputs


def without_effect(tools: Iterable[ResponseTool], inputs: EnforcedInputs) -> dict[str, str]:
    """Return a warning for each type of tools that are left out, and for formats that are not enforced, by path."""
    found: dict[str, str] = {}
    for tool in tools:
        if isinstance(tool, AbsentTool):
            found[f"tools[].{tool.type}"] = f"Tools of type `{tool.type}` are left out: this server does not have them."
    if inputs.not_enforced:
        reasons = "; ".join(f"`{tool.name}`: {reason}" for tool, reason in inputs.not_enforced)
        found["tools[].format"] = f"`format` of a custom tool is shown to the model, but not enforced ({reasons})."
    return found


def function_name(name: str, namespace: str | None) -> str:
    """Return the name of the function that represents a tool: at most 64 characters, a hash if need be."""
    joined = name if namespace is None else f"{namespace}__{name}"
    if len(joined) <= _MAX_NAME:
        return joined
    digest = hashlib.sha256(joined.encode()).hexdigest()[:8]
    return f"{joined[: _MAX_NAME - 9]}_{digest}"
