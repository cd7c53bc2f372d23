"""The adapters of --lora: their names, folders and digests."""

import re
from pathlib import Path

from caravan.model.checkpoint.adapter_digest import adapter_digest
from caravan.scheduler.config import ADAPTER_NAME, MAX_ADAPTERS
from caravan.scheduler.messages import AdapterSource
from caravan.server.http.api_keys import ApiKeys
from caravan.server.settings import Settings, WrongSettings


def adapter_folders(settings: Settings) -> dict[str, Path]:
    """Return the folders of the adapters by their names; raises WrongSettings."""
    folders: dict[str, Path] = {}
    for text in filter(None, map(str.strip, (settings.lora or "").split(","))):
        name, equals, folder = text.partition("=")
        if not equals or not folder or not re.fullmatch(ADAPTER_NAME, name):
            raise WrongSettings(f"--lora {text[:80]!r} is not NAME=FOLDER, such as poems=./poems.")
        if name in folders or name in settings.names:
            raise WrongSettings(f"--lora: the name {name} is there twice. Choose another one.")
        folders[name] = Path(folder)
    if len(folders) > MAX_ADAPTERS:
        raise WrongSettings(f"--lora: there are {len(folders)} adapters; at most {MAX_ADAPTERS} are supported.")
    return folders


def check_lora(settings: Settings, keys: ApiKeys | None) -> None:
    """Raise WrongSettings for adapters that are named wrongly, or cannot be combined with another option."""
    if settings.lora_folder is None and "max_lora_rank" in settings.model_fields_set:
        raise WrongSettings("--max-lora-rank needs --lora-folder. Set both or neither.")
    if settings.lora_folder is not None:
        if not settings.lora_folder.is_dir():
            raise WrongSettings(f"--lora-folder: {settings.lora_folder} is not a folder. Check the path.")
        if keys is not None and not keys.can_any_load:
            raise WrongSettings(
                "--lora-folder: no API key may load an adapter. Write `, adapters` after one in --api-key-file."
            )
    if not adapter_folders(settings) and settings.lora_folder is None:
        return
    option = "--lora" if settings.lora else "--lora-folder"
    for name, is_set in (
        ("--models", settings.models is not None),
        ("--engines", settings.engines is not None),
        ("--tensor-parallel", settings.tensor_parallel > 1),
    ):
        if is_set:
            raise WrongSettings(f"{option} cannot be combined with {name}. Remove one of the options.")


def adapter_sources(settings: Settings) -> list[AdapterSource]:
    """Return the adapters; raises OSError or ValueError, in one line, if a file cannot be read."""
    sources = []
    for name, folder in adapter_folders(settings).items():
        try:
            digest = adapter_digest(folder)
        except OSError as error:
            raise ValueError(f"--lora {name}: {error.filename}: {error.strerror}.") from None
        sources.append(AdapterSource(name=name, path=str(folder.absolute()), digest=digest))
    return sources
