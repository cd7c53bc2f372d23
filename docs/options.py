"""Writes docs/options.md from the settings: python -m docs.options > docs/options.md."""

from itertools import groupby
from operator import attrgetter

from caravan.cli.serve_options import GENERAL, serve_options

_HEAD = """\
# Options of `caravan serve`

Each option is a flag, an environment variable and a key of the YAML file that `--config` names (`--max-model-len`,
`CARAVAN_MAX_MODEL_LEN`, `max_model_len` or `max-model-len`). A flag overrides a variable, a variable the file, and the
file the default. An empty variable, and a key without a value, count as unset; an unknown one is an error.
`caravan config --example` prints a file with all options, and `caravan serve --print-config` the options in force.

A `size` has a unit or is in bytes (`4GiB`, `500MB`); a `duration` has a unit or is in seconds (`100ms`, `0.1s`). An
option without a type is a switch: a flag without a value, or `true` in a variable or in the file.

`python -m docs.options > docs/options.md` writes this page."""


def options_page() -> str:
    """Return the page: a table for each group of options."""
    lines = [_HEAD]
    for group, options in groupby(serve_options(), key=attrgetter("group")):
        lines += ["", f"## {'General' if group == GENERAL else group}", ""]
        lines += ["| option | variable | type | default | description |", "|---|---|---|---|---|"]
        for option in options:
            kind = " or ".join(f"`{choice}`" for choice in option.choices) or option.type.strip("<>")
            kind = ", ".join(filter(None, (kind, option.bounds)))
            default = f"`{option.default}`" if option.default else ""
            lines.append(f"| `{option.flag}` | `{option.variable}` | {kind} | {default} | {_escaped(option.help)} |")
    return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    print(options_page(), end="")
