"""The options of `caravan serve`: one for each setting, for the parser, the help and docs/options.md."""

from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import typer
from pydantic import ByteSize
from pydantic.fields import FieldInfo
from typer.core import TyperCommand
from typer.main import _get_param
from typer.models import ParamMeta

from caravan.cli.model_argument import complete_model
from caravan.server.option_groups import GROUPS
from caravan.server.settings import ENV_PREFIX, Settings

GENERAL = "Options"
PRINT_CONFIG = "print_config"  # the parameter of `caravan serve` that is no setting
REPEATABLE = frozenset({"lora"})  # options whose values are joined by commas
PRINT_CONFIG_FLAG = "--print-config"
PRINT_CONFIG_HELP = "Print the options in force as a YAML file, with the origin of each, and exit."
_TYPES = {int: "int", float: "float", ByteSize: "size", Path: "path", str: "str"}


@dataclass(frozen=True, kw_only=True)
class ServeOption:
    """An option as the help and docs/options.md show it."""

    name: str  # of the setting
    group: str
    type: str  # such as <int> or <auto|cpu>, empty for a switch
    choices: tuple[str, ...]
    default: str  # empty if there is none, or if the help describes it
    bounds: str
    help: str

    @property
    def flag(self) -> str:
        """The option's name on the command line; MODEL is an argument."""
        return "MODEL" if self.name == "model" else f"--{self.name.replace('_', '-')}"

    @property
    def usage(self) -> str:
        """The option's name and type, as on the command line."""
        return "[MODEL]" if self.name == "model" else f"{self.flag} {self.type}".rstrip()

    @property
    def variable(self) -> str:
        """The environment variable that sets the option."""
        return ENV_PREFIX + self.name.upper()

    @property
    def notes(self) -> str:
        """The option's variable, default and bounds, in one line."""
        default = f"default: {self.default}" if self.default else ""
        return "; ".join(filter(None, (f"env: {self.variable}", default, self.bounds)))


def serve_options() -> list[ServeOption]:
    """Return all options, group by group."""
    groups = {name: str(group.__doc__).rstrip(".") for group in GROUPS for name in group.model_fields}
    names = [name for name in Settings.model_fields if name not in groups] + list(groups)
    return [_option(name, groups.get(name, GENERAL), Settings.model_fields[name]) for name in names]


def _option(name: str, group: str, field: FieldInfo) -> ServeOption:
    choices = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
    return ServeOption(
        name=name,
        group=group,
        type=f"<{'|'.join(choices)}>" if choices else _type(field.annotation),
        choices=choices,
        default=_default(field.default),
        bounds=_bounds(field.metadata),
        help=str(field.description),
    )


def _type(annotation: Any) -> str:
    """Return the name of an option's type in the help; `int | None` is shown as int."""
    if annotation is bool:
        return ""
    (kind, *_) = get_args(annotation) or (annotation,)
    if get_origin(kind) is Annotated:
        kind = "duration" if get_args(kind)[0] is float else str
    return f"<{_TYPES.get(kind, kind)}>"


def _default(value: Any) -> str:
    if value is None or value is False:
        return ""
    if isinstance(value, ByteSize):
        return value.human_readable()
    return f"{value:g}" if isinstance(value, float) else str(value)


def _bounds(metadata: list[Any]) -> str:
    bounds = {name: getattr(bound, name) for bound in metadata for name in ("ge", "gt", "le") if hasattr(bound, name)}
    if "le" in bounds:
        return f"{bounds['ge']} to {bounds['le']}"
    return f"at least {bounds['ge']}" if "ge" in bounds else f"more than {bounds['gt']}" if "gt" in bounds else ""


class SettingsCommand(TyperCommand):
    """A command that takes every setting; its function finds the ones that were given in `ctx.params`.

    typer reads parameters from a function's signature. This command's parameters come from the settings instead. Their
    values remain text, which the settings validate.
    """

    def __init__(self, name: str | None, *, params: list[Any], **rest: Any) -> None:
        super().__init__(name, params=[*params, *map(_parameter, serve_options()), _print_config()], **rest)

    def invoke(self, ctx: Any) -> Any:
        """Call the function with its context alone."""
        assert self.callback is not None
        for name in REPEATABLE:
            ctx.params[name] = ",".join(ctx.params.get(name) or ()) or None
        return ctx.invoke(self.callback)

    def format_options(self, _ctx: Any, formatter: Any) -> None:
        """Write the options in their groups, each with its variable, default and bounds below."""
        for group, options in groupby(serve_options(), key=attrgetter("group")):
            rows = []
            for option in options:
                rows += [(option.usage, option.help), ("", f"[{option.notes}]")]
            if group == GENERAL:
                rows.append((PRINT_CONFIG_FLAG, PRINT_CONFIG_HELP))
                rows.append(("--help", "Show this message and exit."))
            with formatter.section(group):
                formatter.write_dl(rows)


def like_serve(name: str) -> Any:
    """Return the option of a setting for another command's signature, of type text as well."""
    (option,) = (option for option in serve_options() if option.name == name)
    return _option_info(option)


def _parameter(option: ServeOption) -> Any:
    """Return the option as typer's parameter; typer has no public function that makes one."""
    is_model = option.name == "model"
    info = typer.Argument(metavar="MODEL", autocompletion=complete_model) if is_model else _option_info(option)
    info.default = None
    kind = list[str] if option.name in REPEATABLE else str
    return _get_param(ParamMeta(name=option.name, default=info, annotation=kind if option.type else bool))


def _print_config() -> Any:
    info = typer.Option(PRINT_CONFIG_FLAG, help=PRINT_CONFIG_HELP)
    info.default = None
    return _get_param(ParamMeta(name=PRINT_CONFIG, default=info, annotation=bool))


def _option_info(option: ServeOption) -> Any:
    def complete(incomplete: str) -> list[str]:
        return [choice for choice in option.choices if choice.startswith(incomplete)]

    return typer.Option(
        option.flag,
        help=option.help,
        metavar=option.type or None,
        autocompletion=complete if option.choices else None,
    )
