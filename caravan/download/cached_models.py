"""Fetched models: those in Caravan's cache and in the Hugging Face cache, and their removal."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from caravan.download.errors import ModelNotFound
from caravan.download.hub import choose_gguf, has_hub_cache
from caravan.download.resolve import ALIASES, models_folder
from caravan.model.spill_files import SpillFileInfo, spill_files, spill_folder
from caravan.model.weights_files import WeightsFile, weights_files, weights_folder

if TYPE_CHECKING:
    from huggingface_hub import CachedFileInfo, CachedRepoInfo, HFCacheInfo

_GGUF = re.compile(r"(?P<stem>.*?)(?:-\d{5}-of-\d{5})?\.gguf", re.IGNORECASE)  # of all parts of a model alike
_SAFETENSORS_SUFFIXES = {".safetensors", ".json", ".jinja"}  # with tokenizer.model what is fetched of a folder


@dataclass(frozen=True, kw_only=True)
class CachedModel:
    """A model that can be served without a network, or the packed weights or cached blocks of one."""

    name: str  # for the argument MODEL
    kind: str  # GGUF, safetensors, packed or kv blocks
    num_bytes: int
    fetched_at: float  # seconds since the epoch; of packed weights, the last use
    path: Path
    file: str = ""  # of a GGUF model, inside its repository
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


def with_packed_weights(
    models: list[CachedModel], environ: Mapping[str, str], *, only_theirs: bool = False
) -> list[CachedModel]:
    """Return the models, then all packed weights, or only theirs, under the names of their models or paths."""
    names = {str(model.path.resolve()): model.name for model in models}
    packed = [
        replace(weights, name=names.get(weights.name, weights.name))
        for weights in packed_weights(None, environ)
        if weights.name in names or not only_theirs
    ]
    return [*models, *packed]


def packed_weights(path: Path | None, environ: Mapping[str, str]) -> list[CachedModel]:
    """Return packed weights and spill files of the model that was served from a path, of all models without a path.

    Their names are paths.
    """
    try:
        found: list[tuple[str, WeightsFile | SpillFileInfo]] = [
            *(("packed", file) for file in weights_files(weights_folder(environ))),
            *(("kv blocks", file) for file in spill_files(spill_folder(environ))),
        ]
    except OSError:  # without a home folder there are none
        return []
    resolved = None if path is None else str(path.resolve())
    return [
        CachedModel(
            name=file.header.model_path,
            kind=kind,
            num_bytes=file.num_bytes,
            fetched_at=file.used_at,
            path=file.path,
        )
        for kind, file in found
        if file.header is not None and resolved in (None, file.header.model_path)
    ]


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
    named = {model.file or model.path.name: model for model in of_repo}
    return [named[choose_gguf(repo, [*named], choice)]]


def remove_models(models: list[CachedModel], *, hub_cache: Path | None = None) -> int:
    """Remove fetched models and return how many bytes that freed; raises OSError.

    A repository is removed as a whole if it has only files left that are fetched together with a model.
    """
    num_bytes = 0
    for model in models:
        if not model.files:
            model.path.unlink(missing_ok=True)
            num_bytes += model.num_bytes
    paths = {file.file_path for model in models for file in model.files}
    if paths and (info := _scan(hub_cache)) is not None:  # a scan of now: entries have times of access
        files = {file for repo in info.repos for revision in repo.revisions for file in revision.files}
        strategy = info.delete_files(*(file for file in files if file.file_path in paths))
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
    name_of = {
        file: file.file_path.relative_to(revision.snapshot_path).as_posix()
        for revision in repo.revisions
        for file in revision.files
    }
    ggufs: dict[str, set[CachedFileInfo]] = {}
    for file, name in name_of.items():
        if (match := _GGUF.fullmatch(name)) is not None:
            ggufs.setdefault(match["stem"], set()).add(file)
    for stem, parts in ggufs.items():
        first = min(parts, key=lambda file: (name_of[file], -file.blob_last_modified))
        yield _hub_model(f"{repo.repo_id}:{stem}", "GGUF", first.file_path, parts, name_of[first])
    if (
        not ggufs
        and "config.json" in name_of.values()
        and any(name.endswith(".safetensors") for name in name_of.values())
    ):
        newest = max(repo.revisions, key=lambda revision: revision.last_modified)
        fetched = {file for file in name_of if _is_fetched(file)}
        yield _hub_model(repo.repo_id, "safetensors", newest.snapshot_path, fetched)


def _is_fetched(file: "CachedFileInfo") -> bool:
    """Return whether a file of a repository is fetched together with its safetensors files."""
    return file.file_path.suffix in _SAFETENSORS_SUFFIXES or file.file_name == "tokenizer.model"


def _hub_model(name: str, kind: str, path: Path, files: "set[CachedFileInfo]", file: str = "") -> CachedModel:
    return CachedModel(
        name=name,
        kind=kind,
        num_bytes=sum({file.blob_path: file.size_on_disk for file in files}.values()),
        fetched_at=max(file.blob_last_modified for file in files),
        path=path,
        file=file,
        files=frozenset(files),
    )


def _remove_emptied(repos: set[str], cache: Path | None) -> int:
    """Remove the repositories that have no models left; return how many bytes that freed."""
    if (info := _scan(cache)) is None:
        return 0
    emptied = frozenset(
        repo for repo in info.repos if repo.repo_type == "model" and repo.repo_id in repos and _is_emptied(repo)
    )
    # Among these repositories only: a fork can have the same revisions, and the client goes by revisions.
    alone = replace(info, repos=emptied)
    strategy = alone.delete_revisions(*(revision.commit_hash for repo in emptied for revision in repo.revisions))
    strategy.execute()
    return strategy.expected_freed_size


def _is_emptied(repo: "CachedRepoInfo") -> bool:
    """Return whether a repository has no model, no files of other programs, and no download in progress."""
    files = (file for revision in repo.revisions for file in revision.files)
    return (
        not any(_repo_models(repo))
        and all(map(_is_fetched, files))
        and not any((repo.repo_path / "blobs").glob("*.incomplete"))
    )
