"""The commands, imported when one is wanted, and the groups in which `caravan --help` lists them."""

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperGroup
from typer.main import get_command

# The help of all commands must not import them: most import the settings, which take three times as long as the rest.
GROUPS: dict[str, dict[str, str]] = {
    "Serve": {
        "serve": "Serve a model over HTTP, or several with --models.",
        "config": "Print the options of `caravan serve` as a YAML file.",
        "deploy": "Start or change replicas on a running cluster of Ray.",
        "rank": "Compute a part of a model for a server on another host.",
    },
    "Models": {
        "pull": "Fetch a model into the cache and print its path.",
        "list": "List the fetched models.",
        "rm": "Remove a fetched model from the cache.",
        "inspect": "Show a model's architecture, memory and unsupported features.",
        "plan": "Compute how many requests of a model fit into memory.",
    },
    "Use": {
        "chat": "Chat with a model.",
        "batch": "Answer the requests in a file, without a server.",
    },
    "Observe": {
        "top": "Show the engine live: batch, queue and KV cache.",
        "explain": "Show how the time of a request was spent.",
        "bench": "Measure the latency, throughput and errors of a server.",
    },
}
_FUNCTIONS = {
    "list": "list_models:list_models",
    "bench": "bench.main:bench",
}  # others: a module and function of its name


class Commands(Mapping[str, Any]):
    """The commands by name; the module of one is imported when it is looked up."""

    def __init__(self) -> None:
        self._names = tuple(name for group in GROUPS.values() for name in group)

    def __getitem__(self, name: str) -> Any:
        if name not in self._names:
            raise KeyError(name)
        module, _, function = _FUNCTIONS.get(name, f"{name}:{name}").partition(":")
        app = typer.Typer(add_completion=False, rich_markup_mode=None)
        app.command(name, cls=_class_of(name))(getattr(import_module(f"caravan.cli.{module}"), function))
        return get_command(app)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _class_of(name: str) -> Any:
    if name != "serve":
        return None
    from caravan.cli.serve_options import SettingsCommand

    return SettingsCommand


class CommandGroups(TyperGroup):
    """The commands, listed in groups."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.commands: Any = Commands()

    def list_commands(self, _ctx: Any) -> list[str]:
        """Return the names of all commands, in the order of the help."""
        return list(self.commands)

    def format_commands(self, _ctx: Any, formatter: Any) -> None:
        """Write each group with a line for each command."""
        for title, summaries in GROUPS.items():
            with formatter.section(title):
                formatter.write_dl(list(summaries.items()))
