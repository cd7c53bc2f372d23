"""The requests of POST /api/chat, /api/generate, /api/embed, /api/embeddings and /api/show."""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from caravan.server.http.errors import invalid
from caravan.server.ollama.generation_fields import GenerationFields, KeepAliveField
from caravan.server.ollama.messages import OllamaMessage, chat_messages
from caravan.server.openai.protocol.decisions import AskingFields
from caravan.server.openai.protocol.fields import wrong
from caravan.server.openai.protocol.known_field import KnownFields, ignored, refused
from caravan.server.openai.protocol.strict_model import StrictModel
from caravan.server.openai.protocol.tools import MAX_TOOLS, Tool

_OLLAMA = "Ollama"
GENERATION: KnownFields = {
    "truncate": ignored(_OLLAMA, harmless=(False,)),
    "shift": ignored(_OLLAMA, harmless=(False,)),
    "template": refused(_OLLAMA, harmless=("",)),
}
CHAT: KnownFields = GENERATION | {
    "prompt": refused(_OLLAMA, harmless=("",), instead="messages"),
    "system": refused(_OLLAMA, harmless=("",), instead="messages"),
    "images": refused(_OLLAMA, harmless=([],)),
}
GENERATE: KnownFields = GENERATION | {
    "messages": refused(_OLLAMA, harmless=([],), instead="prompt"),
    "suffix": refused(_OLLAMA, harmless=("",)),
    "context": refused(_OLLAMA, harmless=([],)),
    "images": refused(_OLLAMA, harmless=([],)),
    "width": refused(_OLLAMA, harmless=(0,)),
    "height": refused(_OLLAMA, harmless=(0,)),
    "steps": refused(_OLLAMA, harmless=(0,)),
}
EMBED: KnownFields = {
    "truncate": ignored(_OLLAMA, harmless=(False,)),
    "options": ignored(_OLLAMA, harmless=({},)),
}
SHOW: KnownFields = {
    "verbose": ignored(_OLLAMA, harmless=(False,)),
    "system": ignored(_OLLAMA, harmless=("",)),
    "template": ignored(_OLLAMA, harmless=("",)),
    "options": ignored(_OLLAMA, harmless=({},)),
}


def _texts(value: list[str]) -> list[str]:
    if not value:
        raise wrong("is empty; it must have at least one text")
    return value


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


_Texts = Annotated[list[str], BeforeValidator(_listed, json_schema_input_type=str | list[str]), AfterValidator(_texts)]


class OllamaTool(Tool):
    """A function; its type may be left out."""

    type: Literal["function"] = "function"


class OllamaChatRequest(GenerationFields):
    """The body of POST /api/chat."""

    known_fields: ClassVar[KnownFields] = CHAT

    messages: list[OllamaMessage] = Field(
        [], max_length=4096, fail_fast=True, description="None: only load the model, if it sleeps."
    )
    tools: list[OllamaTool] = Field([], max_length=MAX_TOOLS)

    def as_chat(self) -> dict[str, Any]:
        """Return the equivalent body of a chat."""
        fields = self.common_fields() | {"messages": chat_messages(self.messages)}
        if self.tools:
            functions = [tool.function.model_dump(exclude_unset=True) for tool in self.tools]
            fields["tools"] = [{"type": "function", "function": function} for function in functions]
        return fields | ({"logprobs": True, "top_logprobs": self.top_logprobs} if self.logprobs else {})


class OllamaGenerateRequest(GenerationFields):
    """The body of POST /api/generate."""

    known_fields: ClassVar[KnownFields] = GENERATE

    prompt: str = Field("", description="Empty: only load the model, if it sleeps.")
    system: str = Field("", description="A system message before the prompt.")
    raw: bool = Field(False, description="True: the prompt is completed as it is, without the chat template.")

    def as_chat(self) -> dict[str, Any]:
        """Return the equivalent body of a chat: the prompt is the user's message."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        fields = self.common_fields() | {"messages": [*system, {"role": "user", "content": self.prompt}]}
        return fields | ({"logprobs": True, "top_logprobs": self.top_logprobs} if self.logprobs else {})

    def as_completion(self) -> dict[str, Any]:
        """Return the equivalent body of a completion."""
        fields = self.common_fields() | {"prompt": self.prompt}
        return fields | ({"logprobs": self.top_logprobs} if self.logprobs else {})

    @model_validator(mode="after")
    def _raw_has_no_system_message(self) -> Self:
        if self.raw and self.system:
            raise invalid("`raw` and `system` cannot be combined; write the system message in `prompt`.", "system")
        return self


class OllamaEmbedRequest(AskingFields):
    """The body of POST /api/embed."""

    known_fields: ClassVar[KnownFields] = EMBED

    model: str
    input: _Texts
    dimensions: int | None = Field(None, ge=1, description="Number of leading components, normalized to length 1.")
    keep_alive: KeepAliveField


class OllamaEmbeddingRequest(AskingFields):
    """The body of POST /api/embeddings, the older form of /api/embed."""

    known_fields: ClassVar[KnownFields] = EMBED

    model: str
    prompt: str
    keep_alive: KeepAliveField


class OllamaShowRequest(StrictModel):
    """The body of POST /api/show."""

    known_fields: ClassVar[KnownFields] = SHOW

    model: str | None = None
    name: str | None = Field(None, description="The older name of `model`.")

    @property
    def asked_name(self) -> str:
        """The model that is asked for."""
        return self.model or self.name or ""

    @model_validator(mode="after")
    def _has_a_name(self) -> Self:
        if not self.asked_name:
            raise invalid("`model` is missing; it is required.", "model")
        if self.model and self.name and self.model != self.name:
            raise invalid("`name` is the older name of `model`; they have different values.", "name")
        return self
