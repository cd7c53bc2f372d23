"""KnownField: a request field of other servers and clients that has no effect here."""

from dataclasses import dataclass


@dataclass(frozen=True)
class KnownField:
    """A field that has no effect here."""

    sources: str  # servers and clients that have it
    harmless: tuple[object, ...] = ()  # values that match what this server does
    is_refused: bool = False  # other values are an error instead of a warning
    instead: str = ""  # the closest field of this server

    @property
    def is_read(self) -> bool:
        """Whether an empty list, object or text differs in effect from others."""
        return self.is_refused or any(value in ([], {}, "") for value in self.harmless)

    def is_harmless(self, value: object) -> bool:
        """Return whether a value matches what this server does."""
        if value is None:
            return True
        return any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in self.harmless)


KnownFields = dict[str, KnownField]


def ignored(*sources: str, harmless: tuple[object, ...] = (), instead: str = "") -> KnownField:
    """Return a field that is accepted with a warning."""
    return KnownField(", ".join(sources), harmless, instead=instead)


def refused(*sources: str, harmless: tuple[object, ...] = (), instead: str = "") -> KnownField:
    """Return a field that is an error unless its value is harmless."""
    return KnownField(", ".join(sources), harmless, is_refused=True, instead=instead)


def all_ignored(source: str, names: str) -> KnownFields:
    """Return a table of another server's fields that are accepted with a warning; spaces separate `names`."""
    return dict.fromkeys(names.split(), ignored(source))
