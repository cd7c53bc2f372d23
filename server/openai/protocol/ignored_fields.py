"""The fields of a request that have no effect here, at any depth, and the warnings about them."""

from caravan.server.openai.protocol.strict_model import StrictModel


def ignored_fields(model: StrictModel, prefix: str = "") -> dict[str, str]:
    """Return each field that was sent and has no effect, with the field that has, if there is one.

    A field is written as its path from `prefix`, without the numbers of list items: messages[].cache_control. Names
    that are not in the tables of known fields are never among them.
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
    """Return a sentence for each field that has no effect."""
    return [
        f"`{path}` has no effect on this server" + (f"; `{instead}` has." if instead else ".")
        for path, instead in ignored.items()
    ]
