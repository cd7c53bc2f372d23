"""The examples in Python of docs/clients.md."""

import re
from pathlib import Path

_PAGE = Path(__file__).parents[2] / "docs/clients.md"
_EXAMPLE = re.compile(r"^## ([^\n]+)\n(?:(?!^## ).)*?^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def examples() -> dict[str, str]:
    """Return the first example of each section that has one, by the section's title."""
    return dict(_EXAMPLE.findall(_PAGE.read_text("utf-8")))
