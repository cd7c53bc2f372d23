"""KnownField: a field of requests that other servers and clients know and that has no effect here."""

from dataclasses import dataclass


@dataclass(frozen=True)
class KnownField:
    """A field that has no effect here."""

    sources: str  # servers and clients that know it
    harmless: tuple[object, ...] = ()  # values that ask for what this server does anyway
    is_refused: bool = False  # other values are an error instead of a warning
    instead: str = ""  # the field of this server that means nearly the same

    @property
    def is_read(self) -> bool:
        """Whether an empty list, object or text means something else than other ones."""
        return self.is_refused or any(value in ([], {}, "") for value in self.harmless)

    def is_harmless(self, value: object) -> bool:
        """Return whether a value asks for nothing that this server does not do anyway."""
        if value is None:
            return True
        return any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in self.harmless)


KnownFields = dict[str, KnownField]


def ignored(*sources: str, harmless: tuple[object, ...] = (), instead: str = "") -> KnownField:
    """Return a field that is taken with a warning."""
    return KnownField(", ".join(sources), harmless, instead=instead)


def refused(*sources: str, harmless: tuple[object, ...] = (), instead: str = "") -> KnownField:
    """Return a field that is an error, but for its harmless values."""
    return KnownField(", ".join(sources), harmless, is_refused=True, instead=instead)
