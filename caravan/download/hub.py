"""A model from the Hugging Face hub."""

import errno
import glob
import os
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from caravan.download.errors import ModelNotFound, ModelUnavailable, Progress

_LATER_PART = re.compile(r".*-(?!00001)\d{5}-of-\d{5}\.gguf", re.IGNORECASE)  # of a model in several files
_FIRST_PART = re.compile(r"(?P<stem>.*)-00001(?P<rest>-of-\d{5}\.gguf)", re.IGNORECASE)


def fetch_from_hub(
    repo: str, choice: str | None, progress: Progress, *, endpoint: str | None = None, cache: Path | None = None
) -> Path:
    """Return a model of a Hugging Face repository: one GGUF file, or the folder with its safetensors.

    `endpoint` and `cache` are the client's own by default. Without a network only cached files can be chosen. Raises
    ModelNotFound or ModelUnavailable.
    """
    if cache is None and not has_hub_cache(os.environ):
        raise ModelUnavailable(
            f"Cannot store {repo}: this user has no home folder. Set HF_HOME to a folder with free space."
        )
    from huggingface_hub import snapshot_download  # here: it takes a good part of a second

    try:
        files = _hub_files(repo, endpoint, cache)
        is_folder = choice is None and "config.json" in files and any(name.endswith(".safetensors") for name in files)
        if is_folder and not any(name.lower().endswith(".gguf") for name in files):
            name, patterns = "", ["*.safetensors", "*.json", "*.jinja", "tokenizer.model"]
        else:
            name = choose_gguf(repo, files, choice)
            first = _FIRST_PART.fullmatch(name)
            parts = glob.escape(name) if first is None else f"{glob.escape(first['stem'])}-?????{first['rest']}"
            patterns = [parts, "tokenizer.model"]
        progress(f"Fetching {name or 'the weights'} of {repo} from Hugging Face, unless cached")
        folder = snapshot_download(repo, allow_patterns=patterns, endpoint=endpoint, cache_dir=cache)
        return Path(folder) / name
    except ModelNotFound:
        raise
    except Exception as error:  # the client's errors have no common base: OSError, httpx2's, Xet's
        raise ModelUnavailable(hub_failure(repo, error)) from error


def has_hub_cache(environ: Mapping[str, str]) -> bool:
    """Return whether the Hugging Face client has a folder for its cache; without one it writes into a folder `~`."""
    if any(environ.get(name) for name in ("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME")):
        return True
    try:
        return Path.home().is_absolute()
    except RuntimeError:
        return False


def choose_gguf(repo: str, files: list[str], choice: str | None) -> str:
    """Return the one GGUF file meant by `choice`: its name, or how its name ends, such as Q4_K_M; any case.

    Raises ModelNotFound with the candidates if there is not exactly one.
    """
    candidates = sorted(name for name in files if name.lower().endswith(".gguf") and not is_later_part(name))
    if not candidates:
        raise ModelNotFound(f"{repo} has no .gguf file. Look for a repository of the same model with GGUF in its name.")
    wanted = (choice or "").lower().removesuffix(".gguf")
    # What stands before the ending must not belong to it: Q4_0 is not IQ4_0, F16 is not BF16.
    ending = re.compile(rf"(.*[^a-z0-9])?{re.escape(wanted)}" if wanted else ".*")
    stems = {name: _stem(name) for name in candidates}
    matches = [name for name, stem in stems.items() if stem == wanted]
    matches = matches or [name for name, stem in stems.items() if ending.fullmatch(stem)]
    if len(matches) == 1:
        return matches[0]
    fact = f"{len(matches)} .gguf files" if matches else f"no .gguf file that ends in {choice}"
    raise ModelNotFound(
        f"{repo} has {fact}. Add the end of one name, as in {repo}:Q4_K_M. Available: {', '.join(candidates)}"
    )


def _stem(name: str) -> str:
    first = _FIRST_PART.fullmatch(name)
    return PurePosixPath(name if first is None else first["stem"]).name.lower().removesuffix(".gguf")


def hub_failure(repo: str, error: Exception) -> str:
    """Return one line about an error of the Hugging Face client."""
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        return f"{repo} is gated. Accept its terms at https://huggingface.co/{repo}, then set HF_TOKEN."
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"Hugging Face has no public repository {repo}. Check the id, or set HF_TOKEN if it is private."
    if isinstance(error, errors.HFValidationError):
        return f"{repo} is not a valid Hugging Face id. Check its spelling."
    if isinstance(error, errors.HfHubHTTPError):
        return f"Hugging Face returned status {error.response.status_code} for {repo}. Try again later."
    if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS}:
        return (
            f"Cannot store {repo} in the Hugging Face cache: {error.strerror}. Set HF_HOME to a writable folder with "
            "free space."
        )
    return (
        f"{repo} is not in the cache, and Hugging Face cannot be reached ({type(error).__name__}). Check the network, "
        "or give the path of a .gguf file."
    )


def _hub_files(repo: str, endpoint: str | None, cache: Path | None) -> list[str]:
    from huggingface_hub import HfApi, errors, snapshot_download

    try:
        # Not list_repo_files: without a network that tries for 20 seconds.
        return [file.rfilename for file in HfApi(endpoint=endpoint).model_info(repo).siblings or []]
    except errors.RepositoryNotFoundError:
        raise
    except Exception as error:  # most likely there is no network
        try:
            folder = Path(snapshot_download(repo, local_files_only=True, cache_dir=cache))
        except errors.IncompleteSnapshotError as incomplete:  # no wonder: we never want all files of a repository
            folder = Path(incomplete.snapshot_path)
        except errors.LocalEntryNotFoundError:
            raise error from None
    return [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]


def is_later_part(name: str) -> bool:
    """Return whether a .gguf file is a part of a split model, other than the first."""
    return _LATER_PART.fullmatch(name) is not None
