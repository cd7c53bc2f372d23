"""StrictModel: the base of all request bodies, and which of their fields have no effect."""

import difflib
import types
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, ClassVar, Self, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ModelWrapValidatorHandler, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from caravan.server.http.errors import shown
from caravan.server.openai.protocol.fields import NoEffect
from caravan.server.openai.protocol.known_field import KnownField, KnownFields

_MAX_FIELDS = 256  # of an object
_LARGEST_EXACT = 2**53  # a float64 holds all integers up to this one
_MAX_NAME = 64  # characters of a name to compare with the known ones
_LEAST_LIKENESS = 0.72  # difflib's ratio
_IGNORED = "_ignored_names"


def _complete_schema(schema: dict[str, Any], model: type["StrictModel"]) -> None:
    """Mark fields with a default as nullable in a JSON schema, and list those that are accepted without effect."""
    for name, field in schema["properties"].items():
        if name not in schema.get("required", []) and "default" in field and field["default"] is not None:
            kind = {key: field.pop(key) for key in list(field) if key not in ("default", "description", "title")}
            field["anyOf"] = [*kind.pop("anyOf", []), *([kind] if kind else []), {"type": "null"}]
    known = model.known_fields.items()
    without_effect = sorted(name for name, field in known if not field.is_refused and name not in schema["properties"])
    if without_effect:
        schema["x-accepted-without-effect"] = without_effect


class StrictModel(BaseModel):
    """A request body: no type conversions, no unknown fields, null for the default value.

    A number such as 8.0 or 1e3 is an integer, as in JSON Schema. Fields of `known_fields` that the model does not have
    are accepted or refused as that table says; the values of accepted ones are not kept.
    """

    model_config = ConfigDict(
        strict=True, extra="forbid", allow_inf_nan=False, json_schema_extra=_complete_schema, protected_namespaces=()
    )

    known_fields: ClassVar[KnownFields] = {}
    _own_names: ClassVar[Mapping[str, bool]]  # of fields as they are sent, and whether they may be left out
    _integer_names: ClassVar[frozenset[str]]
    _marked_names: ClassVar[tuple[str, ...]]  # of fields that have a type, but no effect
    _part_names: ClassVar[tuple[str, ...]]  # of fields that hold such models, or lists of them

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        """Collect the names of fields that need special treatment."""
        cls._own_names = {field.alias or name: not field.is_required() for name, field in cls.model_fields.items()}
        cls._integer_names = frozenset(
            field.alias or name for name, field in cls.model_fields.items() if _holds_integers(field.annotation)
        )
        cls._marked_names = tuple(
            name
            for name, field in cls.model_fields.items()
            if any(isinstance(mark, NoEffect) for mark in field.metadata)
        )
        cls._part_names = tuple(name for name, field in cls.model_fields.items() if _holds_models(field.annotation))

    @classmethod
    def fields_with_meaning(cls) -> frozenset[str]:
        """Return the names, as they are sent, of the fields whose values are read.

        A decoder may replace other lists, objects and texts by empty ones.
        """
        known = cls.known_fields.items()
        return frozenset([*cls._own_names, *(name for name, field in known if field.is_read)])

    @property
    def ignored_names(self) -> list[str]:
        """The fields of this object that were sent and have no effect."""
        names: tuple[str, ...] = self.__dict__.get(_IGNORED, ())
        return [*names, *(name for name in self._marked_names if name in self.model_fields_set)]

    @classmethod
    def part_names(cls) -> tuple[str, ...]:
        """Return the fields that hold strict models, or lists of them."""
        return cls._part_names

    @model_validator(mode="wrap")
    @classmethod
    def _read(cls, value: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        if not isinstance(value, dict):
            return handler(value)
        if len(value) > _MAX_FIELDS:
            raise PydanticCustomError("invalid", "must have at most {limit} fields", {"limit": _MAX_FIELDS})
        own_names, integer_names = cls._own_names, cls._integer_names
        if not integer_names and value.keys() <= own_names.keys() and None not in value.values():
            return handler(value)  # unchanged, as most messages
        own: dict[str, Any] = {}
        ignored: list[str] = []
        for name, item in value.items():
            is_optional = own_names.get(name)
            if is_optional is None:
                if cls._is_ignored(name, item):
                    ignored.append(name)
            elif item is not None or not is_optional:
                own[name] = _whole(item) if name in integer_names else item
        model = handler(own)
        if ignored:
            model.__dict__[_IGNORED] = tuple(ignored)  # as a cached property; a private attribute costs every object
        return model

    @classmethod
    def _is_ignored(cls, name: str, value: Any) -> bool:
        """Return whether a field that the model does not have gets a warning; raises if it is refused."""
        known = cls.known_fields.get(name)
        if known is None:
            nearest = nearest_name(name, [cls._own_names, cls.known_fields])
            problem = PydanticCustomError("unknown_field", "is not known", {"nearest": nearest})
        elif known.is_harmless(value):
            return False
        elif not known.is_refused:
            return True
        else:
            problem = refusal(known)
        details = InitErrorDetails(type=problem, loc=(name,), input=value)
        raise ValidationError.from_exception_data(cls.__name__, [details])


def nearest_name(name: str, candidates: Iterable[Iterable[str]]) -> str:
    """Return the candidate most similar to `name`, of the first group with a similar one; else an empty string."""
    if len(name) > _MAX_NAME:
        return ""
    for names in candidates:
        plain = {_plain(candidate): candidate for candidate in names}
        found = difflib.get_close_matches(_plain(name), plain, n=1, cutoff=_LEAST_LIKENESS)
        if found:
            return plain[found[0]]
    return ""


def refusal(known: KnownField) -> PydanticCustomError:
    """Return the error of a field that is not supported; its message, as in `wrong`, completes a sentence."""
    values = [shown(value) for value in known.harmless if value not in ("", [], {})]
    way_out = "leave it out"
    if known.instead:
        way_out = f"use `{known.instead}`"
    elif values:
        way_out = f"it can only be {' or '.join(values)}"
    return PydanticCustomError("invalid", "is not supported by this version; {way_out}", {"way_out": way_out})


def _plain(name: str) -> str:
    """Return a name without its style: maxTokens, max-tokens and max_tokens become the same."""
    return name.replace("_", "").replace("-", "").lower()


def _holds_integers(kind: Any) -> bool:
    """Return whether an annotation allows integers, or lists of them, and no other numbers."""
    if kind is int:
        return True
    parts = get_args(kind) if get_origin(kind) in (list, Union, types.UnionType, Annotated) else ()
    return any(map(_holds_integers, parts)) and float not in parts


def _holds_models(kind: Any) -> bool:
    """Return whether an annotation allows strict models, or lists of them."""
    if isinstance(kind, type) and issubclass(kind, StrictModel):
        return True
    return get_origin(kind) is not dict and any(map(_holds_models, get_args(kind)))


def _whole(value: Any, depth: int = 2) -> Any:
    """Return a number without a fraction as an integer, also inside lists of lists; other values as they are."""
    if isinstance(value, float):
        return int(value) if value.is_integer() and abs(value) <= _LARGEST_EXACT else value
    if depth and isinstance(value, list) and {float, list} & set(map(type, value)):
        return [_whole(item, depth - 1) for item in value]
    return value


def unknown(place: str, nearest: str) -> str:
    """Return the message about an unknown field."""
    return f"Unknown field `{place}`." + (f" Did you mean `{nearest}`?" if nearest else "")


def ignored_fields(model: StrictModel, prefix: str = "") -> dict[str, str]:
    """Return each field that was sent and has no effect, with the field to use instead, or an empty string.

    A field is a path from `prefix` without list indices: messages[].cache_control. All names are from the tables of
    known fields or from models, never a client's own.
    """
    kind = type(model)
    ignored = {}
    for name in model.ignored_names:
        known = kind.known_fields.get(name)
        ignored[prefix + name] = known.instead if known is not None else ""
    for name in kind.part_names():
        value = getattr(model, name)
        if isinstance(value, list):
            for item in value:
                if isinstance(item, StrictModel):
                    ignored |= ignored_fields(item, f"{prefix}{name}[].")
        elif isinstance(value, StrictModel):
            ignored |= ignored_fields(value, f"{prefix}{name}.")
    return ignored


def ignored_warnings(ignored: dict[str, str]) -> list[str]:
    """Return a warning for each field that has no effect."""
    return [
        f"`{path}` has no effect on this server" + (f"; use `{instead}`." if instead else ".")
        for path, instead in ignored.items()
    ]
