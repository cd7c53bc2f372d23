"""The console on which tables are printed."""

import sys

from rich.console import Console

_FILE_COLUMNS = 140  # of tables that do not go to a terminal


def console() -> Console:
    """Return standard output, as wide as the terminal, or with a fixed width if it is not a terminal."""
    return Console() if sys.stdout.isatty() else Console(width=_FILE_COLUMNS)
