"""StrictModel: how the bodies of requests are read."""

from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator
from pydantic_core import PydanticCustomError

from server.openai.fields import Dropped

_MAX_FIELDS = 256  # of an object; each unknown one is an error of its own


def _let_fields_be_null(schema: dict[str, Any]) -> None:
    """Say in the JSON schema that a field with a default may be null."""
    for name, field in schema["properties"].items():
        if name not in schema.get("required", []) and "default" in field and field["default"] is not None:
            kind = {key: field.pop(key) for key in list(field) if key not in ("default", "description", "title")}
            field["anyOf"] = [*kind.pop("anyOf", []), *([kind] if kind else []), {"type": "null"}]


class StrictModel(BaseModel):
    """No conversions, no unknown fields, null for the default."""

    model_config = ConfigDict(
        strict=True, extra="forbid", allow_inf_nan=False, json_schema_extra=_let_fields_be_null, protected_namespaces=()
    )

    @model_validator(mode="before")
    @classmethod
    def _null_means_default(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        if len(value) > _MAX_FIELDS:
            raise PydanticCustomError("invalid", "must have at most {limit} fields", {"limit": _MAX_FIELDS})
        optional = {name for name, field in cls.model_fields.items() if not field.is_required()}
        return {name: item for name, item in value.items() if item is not None or name not in optional}

    @classmethod
    def fields_with_meaning(cls) -> frozenset[str]:
        """Return the names, as they are sent, of the fields whose values are read; other values need not be kept."""
        return frozenset(
            field.alias or name
            for name, field in cls.model_fields.items()
            if not any(isinstance(mark, Dropped) for mark in field.metadata)
        )
