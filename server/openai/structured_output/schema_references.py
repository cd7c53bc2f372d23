"""References: where a `$ref` of a JSON schema leads."""

from typing import Any
from urllib.parse import unquote

from caravan.server.http.errors import shown
from caravan.server.openai.structured_output.schema_error import SchemaError

_MAX_PARTS = 128  # of a path


class References:
    """Finds the targets of references in one document; never reads anything outside of it."""

    def __init__(self, document: dict[str, Any]) -> None:
        self._document = document
        self._base = _name_of(document)
        self._anchors: dict[str, Any] | None = None

    def target(self, reference: Any) -> Any:
        """Return the schema that a reference leads to; raises SchemaError if it leads out of the document."""
        if not isinstance(reference, str):
            raise SchemaError(f"`$ref` is {shown(reference)}; it must be a string")
        place = reference
        if self._base and place.partition("#")[0] == self._base:
            place = f"#{place.partition('#')[2]}"
        if place in ("#", ""):
            return self._document
        if place.startswith("#/"):
            return self._at(unquote(place[1:]), reference)
        if self._anchors is None:
            self._anchors = {}
            _collect_anchors(self._document, self._anchors)
        if place not in self._anchors:
            raise SchemaError(f"`$ref` is {shown(reference)}, which is not in the schema; nothing is fetched")
        return self._anchors[place]

    def _at(self, pointer: str, reference: str) -> Any:
        value: Any = self._document
        parts = pointer[1:].split("/")
        if len(parts) > _MAX_PARTS:
            raise SchemaError(f"`$ref` has a path of {len(parts)} parts, more than {_MAX_PARTS}")
        for part in parts:
            if value is not self._document and _name_of(value):
                raise SchemaError(f"`$ref` is {shown(reference)}, a path through a schema with its own `$id`")
            name = part.replace("~1", "/").replace("~0", "~")
            if isinstance(value, dict) and name in value:
                value = value[name]
            elif isinstance(value, list) and name.isascii() and name.isdecimal() and int(name[:9]) < len(value):
                value = value[int(name[:9])]
            else:
                raise SchemaError(f"`$ref` is {shown(reference)}, which is not in the schema")
        return value


def has_own_name(schema: dict[str, Any]) -> bool:
    """Return whether a schema has a `$id`, from which on references mean other places."""
    return bool(_name_of(schema))


def _name_of(schema: Any) -> str:
    name = schema.get("$id", schema.get("id")) if isinstance(schema, dict) else None
    return name.rstrip("#") if isinstance(name, str) and not name.startswith("#") else ""


def _collect_anchors(value: Any, anchors: dict[str, Any]) -> None:
    """Add every schema with an anchor or a `$id`, by the reference that leads to it."""
    if isinstance(value, dict):
        names = [f"#{value['$anchor']}"] if isinstance(value.get("$anchor"), str) else []
        names += [value[key] for key in ("$id", "id") if isinstance(value.get(key), str)]
        for name in names:
            anchors.setdefault(name, value)
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _collect_anchors(item, anchors)
