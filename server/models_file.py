"""The file of --models: a YAML list of models, each with options of its own."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from caravan.server.settings import Settings, WrongSettings, load_settings
from caravan.server.settings_file import WrongSettingsFile, read_options

OWN_OPTIONS = frozenset(
    {
        "model",
        "served_model_name",
        "chat_template",
        "chat_template_kwargs",
        "dtype",
        "quantization",
        "fast_matmul",
        "speculation",
        "draft_model",
        "merge_lora",
        "tensor_parallel",
        "num_threads",
        "kv_cache_memory",
        "kv_cache_dtype",
        "block_size",
        "max_model_len",
        "max_num_seqs",
        "max_queued_requests",
        "max_queued_tokens",
        "max_wait",
        "max_batch_tokens",
        "max_inter_token_latency",
        "sleep_after",
        "standby",
        "profile",
    }
)
NOT_COMMON = ("model", "served_model_name")  # would be the same for all models


def load_models(settings: Settings, flags: Mapping[str, Any]) -> list[Settings]:
    """Return the settings of each model in the file; the options of the server are the defaults.

    Raises WrongSettings, which names the file, the line and the option.
    """
    path = settings.models
    assert path is not None, "the option is set"
    for name in NOT_COMMON:
        if name in settings.model_fields_set:
            raise WrongSettings(f"{_option(name)} cannot be combined with --models. Set `{name}` in {path}.")
    models: list[Settings] = []
    users: dict[str, str] = {}  # where each name of a model was first used
    for place, options in _entries(path):
        try:
            model = load_settings({**flags, **options})
            model.check_draft_model()
            model.check_tensor_parallel()
        except WrongSettings as error:
            raise WrongSettings(f"{place}: {error}") from None
        for name in model.names:
            if name in users:
                raise WrongSettings(f"{place}: the name {name} belongs to {users[name]}. Set `served_model_name`.")
            users[name] = place
        models.append(model)
    return models


def _entries(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """Return the options of each entry, with the place of the entry for messages."""
    try:
        with path.open(encoding="utf-8") as file:
            root = yaml.compose(file, yaml.SafeLoader)
            if not isinstance(root, yaml.SequenceNode) or not root.value:
                raise WrongSettings(f"{path} must be a YAML list of models, such as `- model: org/name`.")
            return [_entry(f"{path}, line {node.start_mark.line + 1}", path, node) for node in root.value]
    except (yaml.YAMLError, OSError, UnicodeDecodeError) as error:
        raise WrongSettings(f"Cannot read --models {path}: {' '.join(str(error).split())[:300]}") from None


def _entry(place: str, path: Path, node: yaml.Node) -> tuple[str, dict[str, Any]]:
    if not isinstance(node, yaml.MappingNode):
        raise WrongSettings(f"{place}: an entry must be a mapping of options, such as `- model: org/name`.")
    try:
        options = read_options(node, path, Settings.model_fields)
    except WrongSettingsFile as error:
        raise WrongSettings(str(error)) from None
    for name, option in options.items():
        if name not in OWN_OPTIONS:
            raise WrongSettings(f"{option.place}: `{name}` is an option of the whole server. Set {_option(name)}.")
    if "model" not in options or not options["model"].value:
        raise WrongSettings(f"{place}: `model` is missing.")
    return place, {name: option.value for name, option in options.items()}


def _option(name: str) -> str:
    return "MODEL" if name == "model" else f"--{name.replace('_', '-')}"
