"""The options in force, as GET /v1/server shows them to every API key."""

from pathlib import Path

from pydantic import ByteSize

from caravan.server.operations.server_facts import OptionFacts
from caravan.server.option_groups import GROUPS
from caravan.server.settings import Settings

# Keys, and what describes the machine and its network to those who only have a key.
HIDDEN = frozenset(
    {"api_key", "lora", "host", "trusted_proxies", "allowed_hosts", "allowed_origins", "engines", "rank_address"}
)
MODELS = frozenset({"model", "draft_model"})  # a path or a name


def shown_options(settings: Settings) -> list[OptionFacts]:
    """Return all options; of hidden ones and of paths only whether they are set."""
    return [
        OptionFacts(
            name=name.replace("_", "-"),
            group=(group.__doc__ or "").rstrip("."),
            value=_text(name, getattr(settings, name)),
            is_set=name in settings.model_fields_set,
        )
        for group in GROUPS
        for name in group.model_fields
    ]


def _text(name: str, value: object) -> str:
    if value is None or value == "":
        return "default"
    if name in HIDDEN or isinstance(value, Path):
        return "set"
    if name in MODELS and isinstance(value, str) and (value.startswith(("/", ".", "~")) or Path(value).exists()):
        return Path(value).name
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, ByteSize):
        return value.human_readable(separator=" ").replace(".0 ", " ")
    return f"{value:g}" if isinstance(value, float) else str(value)
