"""LoRA adapters as PEFT writes them, and what they make of a model of transformers, computed in float64."""

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

ALL_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
CONFIG: Mapping[str, Any] = {  # with the defaults that PEFT writes
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "base_model_name_or_path": "org/tiny",
    "r": 4,
    "lora_alpha": 8,
    "lora_dropout": 0.05,
    "bias": "none",
    "fan_in_fan_out": False,
    "inference_mode": True,
    "init_lora_weights": True,
    "modules_to_save": None,
    "rank_pattern": {},
    "alpha_pattern": {},
    "use_dora": False,
    "use_rslora": False,
    "layers_to_transform": None,
    "loftq_config": {},
    "peft_version": "0.18.0",
}
PREFIX = "base_model.model."


def write_adapter(
    folder: Path,
    oracle: Any,
    targets: Iterable[str] = ("q_proj", "v_proj"),
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    ranks: Mapping[str, int] | None = None,
    **changes: Any,
) -> Path:
    """Write a random adapter for the targets in all layers of a model of transformers.

    `ranks` has those of the targets that differ from `r`; the configuration must name them, too.
    """
    config = {**CONFIG, "target_modules": [*targets], **changes}
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}
    for name, module in oracle.named_modules():
        kind = name.rpartition(".")[2]
        if isinstance(module, torch.nn.Linear) and kind in targets:
            rank = (ranks or {}).get(kind, config["r"])
            a = torch.randn(rank, module.in_features, generator=generator) / module.in_features**0.5
            b = torch.randn(module.out_features, rank, generator=generator) / rank**0.5
            tensors |= {f"{PREFIX}{name}.lora_A.weight": a.to(dtype), f"{PREFIX}{name}.lora_B.weight": b.to(dtype)}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def change_config(folder: Path, **changes: Any) -> None:
    """Change fields of an adapter's configuration; None removes one."""
    path = folder / "adapter_config.json"
    fields = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({name: value for name, value in fields.items() if value is not None}))


def change_tensors(folder: Path, changes: Mapping[str, Tensor | None]) -> None:
    """Change tensors of an adapter, by the ends of their names in PEFT; None removes one."""
    path = folder / "adapter_model.safetensors"
    tensors = {name.removeprefix(PREFIX): tensor for name, tensor in load_file(path).items()} | dict(changes)
    save_file({PREFIX + name: tensor for name, tensor in tensors.items() if tensor is not None}, path)


@torch.no_grad()
def merge_into(oracle: Any, folder: Path, scales: Mapping[str, float] | None = None) -> Any:
    """Return the model of transformers in float64, with an adapter merged into its weights.

    `scales` has the factors of the targets; otherwise it is alpha / r of the configuration.
    """
    config = json.loads((folder / "adapter_config.json").read_text())
    tensors = load_file(folder / "adapter_model.safetensors")
    rank = math.sqrt(config["r"]) if config["use_rslora"] else config["r"]
    oracle = oracle.double()
    for name, module in oracle.named_modules():
        if f"{PREFIX}{name}.lora_A.weight" in tensors:
            a, b = (tensors[f"{PREFIX}{name}.lora_{factor}.weight"].double() for factor in "AB")
            scale = (scales or {}).get(name.rpartition(".")[2], config["lora_alpha"] / rank)
            module.weight += scale * b @ a
    return oracle
