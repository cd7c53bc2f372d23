"""StreamForm: what differs between streams of events and of lines."""

from typing import NamedTuple


class StreamForm(NamedTuple):
    """The media type of a stream, and what is sent when there was no output for a while."""

    media_type: str
    keep_alive: bytes
