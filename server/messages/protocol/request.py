"""The requests of POST /v1/messages and /v1/messages/count_tokens."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from caravan.server.http.errors import invalid
from caravan.server.messages.protocol.blocks import TextsField, Turn
from caravan.server.messages.protocol.known_fields import BODY, COUNT, OUTPUT_CONFIG, THINKING
from caravan.server.messages.protocol.tools import ClientTool, ServerTool, ToolChoice, ToolField
from caravan.server.openai.protocol.fields import SchemaField, StopField
from caravan.server.openai.protocol.generation_request import SamplingFields
from caravan.server.openai.protocol.known_field import KnownFields
from caravan.server.openai.protocol.strict_model import StrictModel
from caravan.server.openai.protocol.thinking_fields import TemplateKwargsField
from caravan.server.openai.protocol.tools import MAX_TOOLS


class Thinking(StrictModel):
    """Whether the model thinks, and for how many tokens."""

    known_fields: ClassVar[KnownFields] = THINKING

    type: Literal["enabled", "disabled", "adaptive", "between_tools"] = Field(
        description="All but `disabled` switch thinking on, if the chat template has a switch."
    )
    budget_tokens: Annotated[int, Field(ge=0, lt=2**31)] | None = Field(
        None, description="Largest number of tokens of a thought, after which its closing mark is forced."
    )


class SchemaOutput(StrictModel):
    """JSON of a schema."""

    type: Literal["json_schema"]
    definition: SchemaField = Field(alias="schema", description="It is always enforced.")


class OutputConfig(StrictModel):
    """How much the model thinks, and the form of its text."""

    known_fields: ClassVar[KnownFields] = OUTPUT_CONFIG

    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = Field(
        None, description="Passed to the chat template as `reasoning_effort`."
    )
    format: SchemaOutput | None = None


class PromptBody(StrictModel):
    """What the prompt is made of."""

    model: str
    messages: list[Turn] = Field(min_length=1, max_length=4096, fail_fast=True)
    system: TextsField = Field([])
    tools: list[ToolField] = Field([], max_length=MAX_TOOLS)
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    chat_template_kwargs: TemplateKwargsField = Field(
        {}, description="Variables of the chat template, each a plain value. They override all other fields."
    )

    @property
    def client_tools(self) -> dict[int, ClientTool]:
        """The tools that the model may call, by their places in `tools`."""
        return {place: tool for place, tool in enumerate(self.tools) if isinstance(tool, ClientTool)}

    @property
    def server_tools(self) -> list[str]:
        """The kinds of tools that are left out."""
        return list(dict.fromkeys(tool.family for tool in self.tools if isinstance(tool, ServerTool)))

    @property
    def shows_tools(self) -> bool:
        """Whether the prompt describes tools."""
        return bool(self.client_tools) and (self.tool_choice is None or self.tool_choice.type != "none")


class CountTokensRequest(PromptBody):
    """The body of POST /v1/messages/count_tokens."""

    known_fields: ClassVar[KnownFields] = COUNT


class MessagesRequest(PromptBody, SamplingFields):
    """The body of POST /v1/messages. Nothing is stored: each request has the whole conversation."""

    known_fields: ClassVar[KnownFields] = BODY

    max_tokens: int = Field(
        ge=0,
        description="Limited to the room that the prompt leaves, with a warning. 0: only the prompt is computed.",
    )
    stop_sequences: StopField = Field([])
    stream: bool = False
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)

    @model_validator(mode="after")
    def _stops_agree(self) -> Self:
        if self.stop and self.stop_sequences:
            raise invalid("`stop` and `stop_sequences` are the same; send one of them.", "stop_sequences")
        return self
