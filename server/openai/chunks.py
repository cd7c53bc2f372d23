"""ChunkWriter: the chunks of one streamed answer, as the events of its stream."""

from collections.abc import Callable
from typing import Any, Protocol

from caravan.server.generation.text_stream import TextPiece
from caravan.server.http.sse import TextEvent, event


class ChunkShape(Protocol):
    """How a kind of request writes a choice's share of a chunk."""

    def chunk(self, index: int, piece: TextPiece) -> dict[str, Any] | None:
        """Return a choice's share of one chunk, None if there is nothing to say yet."""

    def opening(self, index: int) -> dict[str, Any] | None:
        """Return the share that comes before the first text, if there is one."""


class ChunkWriter:
    """Writes the pieces of one answer in turn.

    Most pieces are a token's text and nothing else. Their events differ in the text alone, so all around it is
    encoded once for each choice.
    """

    def __init__(
        self,
        shape: ChunkShape,
        head: dict[str, Any],
        *,
        first: dict[str, Any],
        has_only_text: bool,
        has_token_ids: bool,
        usage: Callable[[int], dict[str, Any]] | None = None,
    ) -> None:
        """`head` is in every chunk, `first` in the first one only.

        `has_only_text` says that a choice's share, the last one apart, tells its text alone; `has_token_ids` that it
        names the tokens, so that a piece without text has its chunk too. With `usage`, which returns the usage for a
        number of tokens produced, every chunk has the usage so far: of all choices, up to the chunk's own last token.
        """
        self._shape = shape
        self._head = head
        self._first = first
        self._has_only_text = has_only_text
        self._has_token_ids = has_token_ids
        self._usage = usage
        self._num_tokens = 0  # produced, of all choices
        self._opened: set[int] = set()
        self._text_events: dict[int, TextEvent] = {}

    def events(self, index: int, piece: TextPiece) -> bytes:
        """Return the events of the piece that choice `index` has next; it may be none."""
        if self._usage is not None:
            self._num_tokens += len(piece.token_ids)
        if index in self._text_events and piece.finish_reason is None:
            return self._text_events[index].with_text(piece.text, *self._usage_so_far()) if piece.text else b""
        written = b""
        if index not in self._opened:
            self._opened.add(index)
            opening = self._shape.opening(index)
            if opening is not None:
                written = self._event(opening)
        if piece.text or piece.entries or piece.finish_reason or self._has_token_ids:
            share = self._shape.chunk(index, piece)
            if share is not None:
                written += self._event(share)
        if self._has_only_text and not self._first and piece.finish_reason is None:
            self._text_events[index] = TextEvent(
                lambda text, *usage: self._payload(self._shape.chunk(index, piece._replace(text=text)), *usage),
                num_values=1 if self._usage is None else 2,
            )
        return written

    def _event(self, choice: dict[str, Any]) -> bytes:
        payload = self._payload(choice, *self._usage_so_far()) | self._first
        self._first = {}
        return event(payload)

    def _usage_so_far(self) -> list[dict[str, Any]]:
        return [] if self._usage is None else [self._usage(self._num_tokens)]

    def _payload(self, choice: dict[str, Any] | None, *usage: Any) -> dict[str, Any]:
        assert choice is not None, "a choice that has only text always says it"
        payload: dict[str, Any] = {**self._head, "choices": [choice]}
        return payload | {"usage": usage[0]} if usage else payload
