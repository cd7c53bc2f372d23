"""AdapterFolder: the adapters that clients may load and unload while the server runs."""

import asyncio
import itertools
import re
from pathlib import Path

from caravan.model.checkpoint.adapter_digest import CONFIG_FILE, WEIGHTS_FILE, adapter_digest
from caravan.scheduler.config import ADAPTER_NAME, MAX_ADAPTERS
from caravan.scheduler.messages import AdapterSource
from caravan.server.engine.adapter_list import AdapterList
from caravan.server.generation.served_models import ServedModels
from caravan.server.http.errors import ApiError, invalid, shown


class AdapterFolder:
    """The folder below which adapters must lie, and those of the engine."""

    def __init__(self, folder: Path, adapters: AdapterList) -> None:
        self._folder = folder
        self._adapters = adapters
        self._turn = asyncio.Lock()  # one adapter is loaded at a time
        self._numbers = itertools.count(2)

    async def load(self, models: ServedModels, name: str, path: str) -> None:
        """Add an adapter under a new name, after it was read and checked; raises ApiError or EngineUnavailable."""
        async with self._turn:
            if not re.fullmatch(ADAPTER_NAME, name):
                raise invalid("`lora_name` must have 1 to 128 letters, digits and characters of ._:/@+-.", "lora_name")
            if models.find(name) is not None:
                raise invalid(f"The name `{name}` is in use. Choose another one, or unload it first.", "lora_name")
            if len(self._adapters.names) >= MAX_ADAPTERS:
                raise invalid(f"There are {MAX_ADAPTERS} adapters; no more are supported. Unload one.", "lora_name")
            folder = await asyncio.to_thread(self._folder_at, path)
            digest = await asyncio.to_thread(_digest, folder)
            source = AdapterSource(name=self._new_name(name), path=str(folder), digest=digest)
            if problem := await self._adapters.check(source):
                raise invalid(f"`lora_path` cannot be loaded: {problem}", "lora_path")
            self._adapters.add(source)
            models.add(name, source)

    def unload(self, models: ServedModels, name: str) -> None:
        """Remove an adapter, whose running requests go on to their ends; raises ApiError."""
        served = models.find(name)
        if served is None or served.adapter is None:
            raise ApiError(
                404, f"There is no adapter `{shown(name)[1:-1]}`.", param="lora_name", code="model_not_found"
            )
        models.remove(name)
        self._adapters.remove(served.adapter.name)

    def _new_name(self, name: str) -> str:
        """Return the name by which the engine knows an adapter: requests may still have an earlier one of its name."""
        return name if name not in self._adapters.names else f"{name} ({next(self._numbers)})"

    def _folder_at(self, text: str) -> Path:
        """Return the folder of an adapter, by its path from the folder of all, or absolute; raises ApiError."""
        outside = invalid(
            "`lora_path` must be a folder below the one of --lora-folder, as must its files.", "lora_path"
        )
        try:
            home = self._folder.resolve(strict=True)
            folder = (home / text).resolve()
            if folder == home or not folder.is_relative_to(home) or not folder.is_dir():
                raise outside
            for file in (folder / CONFIG_FILE, folder / WEIGHTS_FILE):
                if not file.resolve().is_relative_to(home):
                    raise outside
        except (OSError, ValueError, RuntimeError):  # no folder, a zero byte, a loop of links
            raise outside from None
        return folder


def _digest(folder: Path) -> str:
    """Return the digest of an adapter's files; empty if they cannot be read, of which the engine says more."""
    try:
        if all((folder / name).is_file() for name in (CONFIG_FILE, WEIGHTS_FILE)):  # nothing that never ends
            return adapter_digest(folder)
    except OSError:
        pass
    return ""
