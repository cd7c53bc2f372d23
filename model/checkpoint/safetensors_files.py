"""The safetensors files of a Hugging Face folder: which there are, and what is in them."""

import logging
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open

from caravan.model.checkpoint import BrokenCheckpoint
from caravan.model.checkpoint.checkpoint import listed
from caravan.model.checkpoint.json_file import JsonFile
from caravan.model.config import UnsupportedModel

_DTYPES = ("F32", "F16", "BF16", "F64")
_MAX_TENSORS = 2**16

logger = logging.getLogger(__name__)


def weight_files(folder: Path) -> tuple[list[Path], Mapping[str, object]]:
    """Return the safetensors files that make up the model, and which file has each tensor by the index."""
    index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if single.is_file():
        if index.is_file():
            logger.warning("%s has both %s and %s; the first one is used.", folder, single.name, index.name)
        return [single], {}
    if not index.is_file():
        if list(folder.glob("*.bin")):
            raise UnsupportedModel(
                f"{folder} has weights in .bin files; supported are safetensors. Convert them first."
            )
        raise BrokenCheckpoint(f"{folder} has no model.safetensors and no model.safetensors.index.json.")
    weight_map = JsonFile(index).part("weight_map")
    indexed = {} if weight_map is None else weight_map.raw()
    names = set(map(str, indexed.values()))
    if not names:
        raise BrokenCheckpoint(f"{index} names no files.")
    for name in names:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise BrokenCheckpoint(f"{index} names {ascii(name)[:80]}, which is not a safetensors file in its folder.")
        if not (folder / name).is_file():
            raise BrokenCheckpoint(f"{folder} lacks {name}, which its index names. Fetch it again.")
    return [folder / name for name in sorted(names)], indexed


def log_other_holders(folder: Path, indexed: Mapping[str, object], holders: Mapping[str, Path]) -> None:
    """Log the tensors that are in other files than the index states; the files are used."""
    if not indexed:
        return
    other = [name for name, file in holders.items() if indexed.get(name) != file.name]
    other += [name for name in indexed if name not in holders]
    if other:
        logger.warning(
            "%s: the index is wrong about %s; what is in the files is used.", folder, listed([*dict.fromkeys(other)])
        )


def tensors_of(file: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """Return the shape and type of each tensor of a file, after checking that the file is complete."""
    tensors: dict[str, tuple[tuple[int, ...], str]] = {}
    try:
        with safe_open(file, framework="pt") as content:
            names = content.keys()
            if len(names) > _MAX_TENSORS:
                raise BrokenCheckpoint(f"{file} has {len(names)} tensors, more than {_MAX_TENSORS}.")
            for name in names:
                tensor = content.get_slice(name)
                tensors[name] = tuple(tensor.get_shape()), tensor.get_dtype()
    except SafetensorError as error:
        raise BrokenCheckpoint(
            f"{file} is not a valid safetensors file: {ascii(str(error))[1:-1][:120]}. Fetch it again."
        ) from None
    return tensors


def check_types(types: Mapping[str, str], holders: Mapping[str, Path]) -> None:
    """Raise UnsupportedModel for a tensor that is not of a supported type."""
    for name, stored_type in types.items():
        if stored_type not in _DTYPES:
            raise UnsupportedModel(
                f"{holders[name]}: {ascii(name)[:80]} has the type {stored_type}; supported are "
                f"{', '.join(_DTYPES)}. Take the model's original, or a GGUF file of it."
            )
