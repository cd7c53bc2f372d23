"""PEFT folders: adapter_config.json and adapter_model.safetensors, an adapter of some linear layers.

LoRA (arXiv:2106.09685), section 4.1: a layer with the weight W computes W x + scale * B (A x).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from caravan.model.checkpoint import BrokenCheckpoint
from caravan.model.checkpoint.adapter_digest import CONFIG_FILE, WEIGHTS_FILE
from caravan.model.checkpoint.checkpoint import listed
from caravan.model.checkpoint.folder_links import check_links
from caravan.model.checkpoint.peft_config import LoraConfig, read_lora_config
from caravan.model.checkpoint.safetensors_files import check_types, tensors_of
from caravan.model.config import UnsupportedModel

_PREFIX = "base_model.model."
_FACTOR = re.compile(r"(.+)\.lora_([AB])\.weight", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """A LoRA adapter on disk; its values have been checked, but are read again when they are asked for."""

    path: Path
    config: LoraConfig
    shapes: Mapping[str, tuple[int, int, int]]  # module, such as model.layers.0.self_attn.q_proj -> out, in, rank
    stored_types: frozenset[str]

    @property
    def files(self) -> tuple[Path, ...]:
        """The files on which the adapter depends."""
        return self.path / CONFIG_FILE, self.path / WEIGHTS_FILE

    @property
    def num_parameters(self) -> int:
        """The number of parameters."""
        return sum(rank * (num_outputs + num_inputs) for num_outputs, num_inputs, rank in self.shapes.values())

    def factors(self, module: str) -> tuple[Tensor, Tensor]:
        """Return A [rank, in] and B [out, rank] of a module in float32; raises BrokenCheckpoint."""
        with safe_open(self.path / WEIGHTS_FILE, framework="pt") as content:
            a, b = (content.get_tensor(f"{_PREFIX}{module}.lora_{factor}.weight").float() for factor in "AB")
        return a, b

    def described(self) -> str:
        """Return the modules with their shapes and scales."""
        return repr([(name, shape, self.config.scale_of(name)) for name, shape in sorted(self.shapes.items())])


def open_adapter(folder: Path) -> Adapter:
    """Return the adapter in a folder; raises OSError, BrokenCheckpoint or UnsupportedModel.

    All values are read once, to see that they are finite.
    """
    if not folder.is_dir():
        raise BrokenCheckpoint(f"{folder} is not a folder with an {CONFIG_FILE}.")
    check_links(folder)
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            if name == WEIGHTS_FILE and (folder / "adapter_model.bin").exists():
                raise UnsupportedModel(
                    f"{folder} has its weights in adapter_model.bin, which can run code when it is read. "
                    "Convert it to safetensors."
                )
            raise BrokenCheckpoint(f"{folder} has no {name}.")
    config = read_lora_config(folder / CONFIG_FILE)
    file = folder / WEIGHTS_FILE
    tensors = tensors_of(file)
    check_types({name: stored_type for name, (_, stored_type) in tensors.items()}, dict.fromkeys(tensors, file))
    adapter = Adapter(
        path=folder,
        config=config,
        shapes=_shapes(file, {name: shape for name, (shape, _) in tensors.items()}, config),
        stored_types=frozenset(stored_type for _, stored_type in tensors.values()),
    )
    with safe_open(file, framework="pt") as content:
        for name in tensors:
            if not torch.stack(content.get_tensor(name).float().aminmax()).isfinite().all():
                raise BrokenCheckpoint(f"{file}: {ascii(name)[1:-1][:120]} holds values that are not finite numbers.")
    return adapter


def _shapes(file: Path, tensors: Mapping[str, tuple[int, ...]], config: LoraConfig) -> dict[str, tuple[int, int, int]]:
    """Return outputs, inputs and rank of each module whose two matrices are among the tensors, which must be all."""
    found: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, shape in tensors.items():
        match = _FACTOR.fullmatch(name.removeprefix(_PREFIX))
        if match is None or not name.startswith(_PREFIX):
            raise UnsupportedModel(f"{file} has {listed([name])}, which plain LoRA of linear layers does not have.")
        found.setdefault(match[1], {})[match[2]] = shape
    if not found:
        raise BrokenCheckpoint(f"{file} has no tensors.")
    shapes: dict[str, tuple[int, int, int]] = {}
    for module, factors in found.items():
        shown = ascii(module)[1:-1][:120]
        if factors.keys() != {"A", "B"}:
            raise BrokenCheckpoint(f"{file}: {shown} has lora_{min(factors)}, but not the other matrix.")
        a, b = factors["A"], factors["B"]
        if len(a) != 2 or len(b) != 2 or 0 in (*a, *b) or a[0] != b[1]:
            raise BrokenCheckpoint(f"{file}: {shown} has matrices of the shapes {list(a)} and {list(b)}.")
        if not config.is_target(module):
            raise BrokenCheckpoint(f"{file}: {shown} is not among the target_modules of {CONFIG_FILE}.")
        if a[0] != config.rank_of(module):
            raise BrokenCheckpoint(
                f"{file}: {shown} has the rank {a[0]}; by {CONFIG_FILE} it is {config.rank_of(module)}."
            )
        shapes[module] = b[0], a[1], a[0]
    return shapes
