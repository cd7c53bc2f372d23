"""The field `response_format`: text, any JSON object, or JSON of a schema."""

from typing import Annotated, ClassVar, Literal

from pydantic import Discriminator, Field

from caravan.server.openai.protocol.fields import SchemaField
from caravan.server.openai.protocol.known_field import KnownFields
from caravan.server.openai.protocol.known_fields import SCHEMA
from caravan.server.openai.protocol.strict_model import StrictModel


class TextFormat(StrictModel):
    """Any text."""

    type: Literal["text"]


class JsonObjectFormat(StrictModel):
    """Any JSON object."""

    type: Literal["json_object"]


class SchemaObjectFormat(JsonObjectFormat):
    """Any JSON object, or JSON of the schema in llama.cpp's field."""

    definition: SchemaField | None = Field(None, alias="schema", description="llama.cpp's name for a JSON schema.")


class JsonSchema(StrictModel):
    """A schema with a name."""

    known_fields: ClassVar[KnownFields] = SCHEMA

    name: str = Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")
    definition: SchemaField = Field(
        {}, alias="schema", description="JSON Schema, draft 2020-12, as far as enforceable."
    )
    strict: bool = Field(False, description="Schemas are always enforced.")

    @property
    def is_lax(self) -> bool:
        """Whether `strict` is set to false."""
        return "strict" in self.model_fields_set and not self.strict


class JsonSchemaFormat(StrictModel):
    """JSON of a schema."""

    type: Literal["json_schema"]
    json_schema: JsonSchema


ResponseFormat = Annotated[TextFormat | SchemaObjectFormat | JsonSchemaFormat, Discriminator("type")]
