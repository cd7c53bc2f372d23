"""Tools of /v1/messages, and the choice among them."""

import re
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from caravan.server.http.errors import invalid
from caravan.server.messages.protocol.known_fields import TOOL
from caravan.server.openai.protocol.fields import SchemaField
from caravan.server.openai.protocol.known_field import KnownFields
from caravan.server.openai.protocol.response_tools import function_name
from caravan.server.openai.protocol.strict_model import StrictModel

# Tools whose schema or whose work is Anthropic's; their types end with a date.
_SERVER_TOOLS = (
    "web_search|web_fetch|bash|text_editor|computer|computer_toolset|browser_toolset|code_execution|memory|advisor|"
    "tool_search_tool_regex|tool_search_tool_bm25|mcp_toolset"
)
_FAMILY = re.compile(rf"({_SERVER_TOOLS})(_\d{{8}})?")


class ClientTool(StrictModel):
    """A tool that the client runs."""

    known_fields: ClassVar[KnownFields] = TOOL

    type: Literal["custom"] = "custom"
    name: str = Field(pattern=r"^[a-zA-Z0-9_-]{1,128}$")
    description: str | None = Field(None, max_length=16384)
    input_schema: SchemaField = Field(description="JSON schema of the input, an object.")
    strict: bool = Field(False, description="The input of required calls always matches the schema.")

    @property
    def function_name(self) -> str:
        """The name of the chat's function that represents the tool."""
        return function_name(self.name, None)

    def as_chat_tool(self) -> dict[str, Any]:
        """Return the tool of the chat."""
        function: dict[str, Any] = {"name": self.function_name, "parameters": self.input_schema}
        if self.description is not None:
            function["description"] = self.description
        if "strict" in self.model_fields_set:
            function["strict"] = self.strict
        return {"type": "function", "function": function}


class ServerTool(BaseModel):
    """A tool that this server does not have; it is not shown to the model."""

    model_config = ConfigDict(extra="ignore")

    type: str = Field(pattern=rf"^({_SERVER_TOOLS})(_[0-9]{{8}})?$")

    @property
    def family(self) -> str:
        """The type without its date."""
        found = _FAMILY.fullmatch(self.type)
        assert found is not None
        return found[1]


def _kind(value: Any) -> str:
    kind = value.get("type") if isinstance(value, dict) else None
    return "client" if kind in (None, "custom") else "server"


ToolField = Annotated[Annotated[ClientTool, Tag("client")] | Annotated[ServerTool, Tag("server")], Discriminator(_kind)]


class ToolChoice(StrictModel):
    """Whether the model must call a tool, and which."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = Field(None, description="Of the tool, with the type `tool`.")
    disable_parallel_tool_use: bool = Field(False, description="True: at most one call.")

    @model_validator(mode="after")
    def _names_a_tool(self) -> Self:
        if (self.type == "tool") != (self.name is not None):
            raise invalid("`tool_choice.name` is required with the type `tool`, and only with it.", "tool_choice.name")
        return self

    def as_chat_choice(self) -> str | dict[str, Any]:
        """Return the choice in the form of a chat."""
        if self.name is not None:
            return {"type": "function", "function": {"name": function_name(self.name, None)}}
        return {"any": "required"}.get(self.type, self.type)
