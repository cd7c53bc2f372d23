"""Blocks: the content of messages as clients send it."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Discriminator, Field

from caravan.server.messages.protocol.known_fields import BLOCK, TURN
from caravan.server.openai.protocol.fields import wrong
from caravan.server.openai.protocol.known_field import KnownFields
from caravan.server.openai.protocol.strict_model import StrictModel


class TextBlock(StrictModel):
    """A text."""

    known_fields: ClassVar[KnownFields] = BLOCK

    type: Literal["text"]
    text: str


class ThinkingBlock(StrictModel):
    """A thought of an earlier response."""

    known_fields: ClassVar[KnownFields] = BLOCK

    type: Literal["thinking"]
    thinking: str
    signature: str = Field("", description="Of a response of this server it has the same text.")


class RedactedThinkingBlock(StrictModel):
    """A thought that cannot be read."""

    type: Literal["redacted_thinking"]
    data: str


class ToolUseBlock(StrictModel):
    """A call of an earlier response."""

    known_fields: ClassVar[KnownFields] = BLOCK

    type: Literal["tool_use"]
    id: str = Field(max_length=256)
    name: str
    input: dict[str, Any]


class ToolReference(StrictModel):
    """The name of a tool in a result; it is part of the text."""

    known_fields: ClassVar[KnownFields] = BLOCK

    type: Literal["tool_reference"]
    tool_name: str


def _unread(_: str) -> str:
    raise wrong("cannot be used: this server reads text only")


class UnreadBlock(BaseModel):
    """Content other than text, which is rejected."""

    model_config = ConfigDict(extra="ignore")

    type: Annotated[
        Literal["image", "document", "search_result", "container_upload", "audio", "video"], AfterValidator(_unread)
    ]


class AbsentBlock(BaseModel):
    """A block of a tool that Anthropic's servers run, or of a change of the tools; it is left out."""

    model_config = ConfigDict(extra="ignore")

    type: Literal[
        "tool_addition",
        "tool_removal",
        "server_tool_use",
        "web_search_tool_result",
        "web_fetch_tool_result",
        "code_execution_tool_result",
        "bash_code_execution_tool_result",
        "text_editor_code_execution_tool_result",
        "tool_search_tool_result",
        "advisor_tool_result",
        "mcp_tool_use",
        "mcp_tool_result",
        "mcp_tool_listing",
        "compaction",
        "fallback",
    ]


def _as_blocks(value: Any) -> Any:
    """Return a text as the one block of a list."""
    return [{"type": "text", "text": value}] if isinstance(value, str) else value


ResultPart = Annotated[TextBlock | ToolReference | UnreadBlock, Discriminator("type")]
ResultField = Annotated[list[ResultPart], BeforeValidator(_as_blocks, json_schema_input_type=str | list[ResultPart])]
TextsField = Annotated[list[TextBlock], BeforeValidator(_as_blocks, json_schema_input_type=str | list[TextBlock])]


class ToolResultBlock(StrictModel):
    """The result of a call."""

    known_fields: ClassVar[KnownFields] = BLOCK

    type: Literal["tool_result"]
    tool_use_id: str = Field(max_length=256)
    content: ResultField = Field([])
    is_error: bool = False


Block = Annotated[
    TextBlock
    | ThinkingBlock
    | RedactedThinkingBlock
    | ToolUseBlock
    | ToolResultBlock
    | ToolReference
    | UnreadBlock
    | AbsentBlock,
    Discriminator("type"),
]
BlocksField = Annotated[list[Block], BeforeValidator(_as_blocks, json_schema_input_type=str | list[Block])]


class Turn(StrictModel):
    """A message."""

    known_fields: ClassVar[KnownFields] = TURN

    role: Literal["user", "assistant", "system"]
    content: BlocksField
