"""Cancellation: how another request ends a response that runs."""

from collections.abc import Callable


class Cancellation:
    """Whether another request has ended this one, and what then ends its generation."""

    def __init__(self) -> None:
        self.is_cancelled = False
        self._end: Callable[[], None] | None = None

    @property
    def has_generation(self) -> bool:
        """Whether a generation has started, which writes its own end."""
        return self._end is not None

    def begin(self, end: Callable[[], None]) -> None:
        """Call `end` at the cancellation, at once if it has been already; it replaces an earlier one."""
        self._end = end
        if self.is_cancelled:
            end()

    def cancel(self) -> None:
        """End the generation, if there is one."""
        self.is_cancelled = True
        if self._end is not None:
            self._end()
