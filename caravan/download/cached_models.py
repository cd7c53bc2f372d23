"""Fetched models: those in Caravan's cache and in the Hugging Face cache, and their removal."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from caravan.download.errors import ModelNotFound
from caravan.download.hub import choose_gguf, has_hub_cache
from caravan.download.resolve import ALIASES, models_folder

if TYPE_CHECKING:
    from huggingface_hub import CachedFileInfo, CachedRepoInfo, HFCacheInfo

_GGUF = re.compile(r"(?P<stem>.*?)(?:-\d{5}-of-\d{5})?\.gguf", re.IGNORECASE)  # of all parts of a model alike


@dataclass(frozen=True, kw_only=True)
class CachedModel:
    """A model that can be served without a network."""

    name: str  # for the argument MODEL
    kind: str  # GGUF or safetensors
    num_bytes: int
    fetched_at: float  # seconds since the epoch
    path: Path
    files: frozenset["CachedFileInfo"] = frozenset()  # in the Hugging Face cache; empty for Caravan's own

    @property
    def repo(self) -> str:
        """The repository or alias that the model comes from."""
        return self.name.partition(":")[0]


def cached_models(environ: Mapping[str, str], *, hub_cache: Path | None = None) -> list[CachedModel]:
    """Return the fetched models, sorted by name; `hub_cache` is the Hugging Face client's own by default.

    Raises OSError if a cache cannot be read.
    """
    models = [*_wheel_models(environ)]
    if hub_cache is not None or has_hub_cache(environ):
        info = _scan(hub_cache)
        models += [model for repo in (info.repos if info else ()) for model in _repo_models(repo)]
    return sorted(models, key=lambda model: model.name)


def models_named(models: list[CachedModel], name: str) -> list[CachedModel]:
    """Return the models that `name` stands for: one, or for `org/name` all of that repository.

    Raises ModelNotFound if there is none.
    """
    repo, _, choice = name.partition(":")
    of_repo = [model for model in models if model.repo == repo]
    if not of_repo:
        raise ModelNotFound(f"{name} is not a fetched model. `caravan list` shows the fetched models.")
    if not choice:
        return of_repo
    file = choose_gguf(repo, [model.path.name for model in of_repo], choice)
    return [model for model in of_repo if model.path.name == file]


def remove_models(models: list[CachedModel], *, hub_cache: Path | None = None) -> int:
    """Remove fetched models and return how many bytes that freed; raises OSError.

    A repository that holds no other model is removed whole.
    """
    num_bytes = 0
    for model in models:
        if not model.files:
            model.path.unlink(missing_ok=True)
            num_bytes += model.num_bytes
    files = [file for model in models for file in model.files]
    if files and (info := _scan(hub_cache)) is not None:
        strategy = info.delete_files(*files)
        strategy.execute()
        num_bytes += strategy.expected_freed_size
        num_bytes += _remove_emptied({model.repo for model in models}, hub_cache)
    for model in models:
        if model.path.is_file():  # the Hugging Face client logs what it cannot delete, and goes on
            raise PermissionError(f"{model.path} cannot be deleted")
    return num_bytes


def _wheel_models(environ: Mapping[str, str]) -> Iterator[CachedModel]:
    try:
        folder = models_folder(environ)
    except OSError:  # without a home folder nothing was fetched
        return
    for name, pin in ALIASES.items():
        path = folder / PurePosixPath(pin.member).name
        if path.is_file():
            status = path.stat()
            yield CachedModel(name=name, kind="GGUF", num_bytes=status.st_size, fetched_at=status.st_mtime, path=path)


def _scan(cache: Path | None) -> "HFCacheInfo | None":
    """Return what the Hugging Face cache holds, None if there is no such folder."""
    from huggingface_hub import errors, scan_cache_dir  # here: it takes a tenth of a second

    try:
        return scan_cache_dir(cache)
    except errors.CacheNotFound:
        return None
    except ValueError as error:  # the cache is a file
        raise NotADirectoryError(str(error)) from None


def _repo_models(repo: "CachedRepoInfo") -> Iterator[CachedModel]:
    """Yield the models of a cached repository: each of its GGUF files, or its folder of safetensors."""
    if repo.repo_type != "model":
        return
    files = {file for revision in repo.revisions for file in revision.files}
    ggufs: dict[str, set[CachedFileInfo]] = {}
    for file in files:
        if (match := _GGUF.fullmatch(file.file_name)) is not None:
            ggufs.setdefault(match["stem"], set()).add(file)
    for stem, parts in ggufs.items():
        path = min(parts, key=lambda file: (file.file_name, -file.blob_last_modified)).file_path
        yield _hub_model(f"{repo.repo_id}:{stem}", "GGUF", path, parts)
    names = {file.file_name for file in files}
    if not ggufs and "config.json" in names and any(name.endswith(".safetensors") for name in names):
        newest = max(repo.revisions, key=lambda revision: revision.last_modified)
        yield _hub_model(repo.repo_id, "safetensors", newest.snapshot_path, files)


def _hub_model(name: str, kind: str, path: Path, files: "set[CachedFileInfo]") -> CachedModel:
    return CachedModel(
        name=name,
        kind=kind,
        num_bytes=sum({file.blob_path: file.size_on_disk for file in files}.values()),
        fetched_at=max(file.blob_last_modified for file in files),
        path=path,
        files=frozenset(files),
    )


def _remove_emptied(repos: set[str], cache: Path | None) -> int:
    """Remove those of the repositories that hold no model any more; return how many bytes that freed."""
    if (info := _scan(cache)) is None:
        return 0
    emptied = frozenset(
        repo
        for repo in info.repos
        if repo.repo_type == "model" and repo.repo_id in repos and not any(_repo_models(repo))
    )
    # Among these repositories only: a fork can have the same revisions, and the client goes by revisions.
    alone = replace(info, repos=emptied)
    strategy = alone.delete_revisions(*(revision.commit_hash for repo in emptied for revision in repo.revisions))
    strategy.execute()
    return strategy.expected_freed_size
