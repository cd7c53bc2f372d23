"""The YAML file of --config: a mapping of options, each in either spelling, `max_num_seqs` or `max-num-seqs`."""

import difflib
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

import yaml

_LEAST_LIKENESS = 0.7  # difflib's ratio


class WrongSettingsFile(ValueError):
    """The file cannot be used; the text is one line that names it, and the line in it."""


class FileOption(NamedTuple):
    """The value of an option in the file, and where it stands."""

    value: Any
    place: str  # such as `caravan.yaml, line 3`


def read_settings_file(path: Path, known: Collection[str]) -> dict[str, FileOption]:
    """Return the options in a file by their names; one without a value is left out. Raises WrongSettingsFile."""
    if not path.is_file():
        raise WrongSettingsFile(f"The settings file {path} does not exist. Check --config.")
    try:
        with path.open(encoding="utf-8") as file:
            root = yaml.compose(file, yaml.SafeLoader)
            if root is None:
                return {}
            if not isinstance(root, yaml.MappingNode):
                raise WrongSettingsFile(
                    f"The settings file {path} must be a YAML mapping of options, such as `port: 8001`."
                )
            return {name: one for name, one in read_options(root, path, known).items() if one.value is not None}
    except (yaml.YAMLError, OSError, UnicodeDecodeError) as error:
        raise WrongSettingsFile(f"Cannot read the settings file {path}: {' '.join(str(error).split())[:300]}") from None


def read_options(node: yaml.MappingNode, path: Path, known: Collection[str]) -> dict[str, FileOption]:
    """Return the options of a mapping in a file; raises WrongSettingsFile for one that is unknown or set twice."""
    loader = yaml.SafeLoader("")
    options: dict[str, FileOption] = {}
    for key, value in node.value:
        place = f"{path}, line {key.start_mark.line + 1}"
        name = str(key.value).replace("-", "_")
        if name not in known:
            hint = near_name(name, known) or "`caravan serve --help` lists the options."
            raise WrongSettingsFile(f"{place}: unknown option `{key.value}`. {hint}")
        if name in options:
            raise WrongSettingsFile(f"{place}: `{name}` is set twice.")
        options[name] = FileOption(loader.construct_object(value, deep=True), place)
    return options


def near_name(name: str, known: Collection[str]) -> str:
    """Return a question with the known name that is most like an unknown one, empty if none is like it."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=_LEAST_LIKENESS)
    return f"Did you mean `{near[0]}`?" if near else ""
