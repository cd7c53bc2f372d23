"""The messages of a conversation, as chat requests carry them."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from server.openai.errors import invalid
from server.openai.fields import ContentField, Only, Unsupported
from server.openai.strict_model import StrictModel
from server.openai.tool_schemas import MAX_TOOLS, Tool, ToolCall


class Message(StrictModel):
    """One turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"] = Field(
        description="developer is another name of system."
    )
    content: ContentField = Field(description="May be left out beside `tool_calls`.")
    name: str | None = Field(None, max_length=256)
    tool_call_id: str | None = Field(None, max_length=256)

    # What an answer of ours, or of OpenAI, has and a client may send back with the next question.
    refusal: Unsupported = None
    audio: Unsupported = None
    function_call: Unsupported = None
    annotations: Annotated[Any, Only(None, [])] = None
    tool_calls: list[ToolCall] = Field([], max_length=MAX_TOOLS)

    @model_validator(mode="before")
    @classmethod
    def _calls_need_no_content(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.get("tool_calls") and value.get("content") is None:
            return {**value, "content": ""}
        return value

    @model_validator(mode="after")
    def _only_assistants_call(self) -> Self:
        if self.tool_calls and self.role != "assistant":
            raise invalid("Only an assistant's message has `tool_calls`.", "messages")
        return self


class Conversation(StrictModel):
    """What a chat template writes as a prompt."""

    messages: list[Message] = Field(min_length=1, max_length=4096, fail_fast=True)
    add_generation_prompt: bool | None = Field(None, description="True unless continue_final_message is.")
    continue_final_message: bool = False
    tools: list[Tool] = Field([], max_length=MAX_TOOLS)

    @property
    def shown_tools(self) -> list[Tool]:
        """The functions that the model is told of."""
        return self.tools

    @model_validator(mode="after")
    def _prompts_agree(self) -> Self:
        if self.continue_final_message and self.add_generation_prompt:
            raise invalid(
                "`continue_final_message` and `add_generation_prompt` exclude each other.", "continue_final_message"
            )
        names = [tool.function.name for tool in self.tools]
        if len(set(names)) < len(names):
            raise invalid("Two functions of `tools` have the same name.", "tools")
        return self
