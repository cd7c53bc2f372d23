"""MarkdownView: Markdown in a terminal while it is being written."""

import time
from collections.abc import Callable

from markdown_it import MarkdownIt
from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.markdown import Markdown
from rich.segment import Segment

_FRAME_SECONDS = 0.05  # between two drawings of the block that is being written
_OTHER_LINES = 2  # of the terminal


class MarkdownView:
    """Prints each block, such as a paragraph or a table, when it is complete, and redraws the last one until then."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` returns seconds."""
        self._console = console
        self._clock = clock
        self._pending = ""  # the last block
        self._drawn_at_seconds = 0.0
        self._has_blocks = False
        self._live: Live | None = None

    def write(self, text: str) -> None:
        """Add text without control characters other than tab and line feed."""
        if self._live is None:
            self._live = Live(
                console=self._console,
                auto_refresh=False,
                transient=True,
                redirect_stdout=False,
                redirect_stderr=False,
            )
            self._live.start()
        complete, self._pending = split_last_block(self._pending + text)
        self._print(complete)
        now = self._clock()
        if complete or now >= self._drawn_at_seconds + _FRAME_SECONDS:
            self._drawn_at_seconds = now
            self._live.update(_Tail(_markdown(self._pending)), refresh=True)

    def close(self) -> None:
        """Print the last block."""
        if self._live is not None:
            self._live.stop()
            self._live = None
        self._print(self._pending)
        self._pending = ""

    def _print(self, blocks: str) -> None:
        if not blocks.strip():
            return
        if self._has_blocks:
            self._console.print()
        self._has_blocks = True
        self._console.print(_markdown(blocks))


class _Tail:
    """The last lines of what is drawn, as many as the terminal has: what is redrawn must not scroll."""

    def __init__(self, markdown: Markdown) -> None:
        self._markdown = markdown

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines = console.render_lines(self._markdown, options, pad=False)
        for line in lines[-max(console.height - _OTHER_LINES, 1) :]:
            yield from line
            yield Segment.line()


def split_last_block(text: str) -> tuple[str, str]:
    """Return a text's blocks without the last one, and the last one, which may not be complete."""
    parser = MarkdownIt().enable("strikethrough").enable("table")  # as rich's own
    starts = [token.map[0] for token in parser.parse(text) if token.level == 0 and token.map and token.nesting >= 0]
    lines = text.split("\n")
    start = starts[-1] if len(starts) > 1 else 0
    return "\n".join([*lines[:start], ""]) if start else "", "\n".join(lines[start:])


def _markdown(text: str) -> Markdown:
    return Markdown(text, code_theme="ansi_dark", hyperlinks=False)  # a link shows where it leads
