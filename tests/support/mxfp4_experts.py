"""A random gpt-oss whose experts are in MXFP4, written number by number, in every form that files have for it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.model.checkpoint.published_formats import write_gguf
from tests.support.quantized_folders import E2M1, Tensors, in_bytes, random_places
from tests.support.transformers_models import GPT_OSS, edit, random_model

CHANGES = GPT_OSS | {
    **{"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_local_experts": 4},
    "swiglu_limit": 7.0,  # GGUF files do not state it
}
GGUF_FIELDS: dict[str, Any] = {
    **{"rope__scaling__type": "yarn", "rope__scaling__factor": 4.0},
    **{"rope__scaling__original_context_length": 32, "attention__sliding_window": 17},
}


@dataclass(frozen=True)
class Mxfp4Experts:
    """The model, and of each stacked matrix of experts the places in the table and the exponents."""

    oracle: Any  # with the same weights
    places: Tensors  # [experts, outputs, inputs]
    exponents: Tensors  # [experts, outputs, inputs / 32]

    def write_plain(self, folder: Path) -> None:
        """Write the folder as transformers does."""
        self.oracle.save_pretrained(folder)

    def write_mxfp4(self, folder: Path) -> None:
        """Write the folder with blocks and scales, as OpenAI published the models."""
        self.oracle.save_pretrained(folder)
        tensors = load_file(folder / "model.safetensors")
        for name, places in self.places.items():
            del tensors[name]
            packed = [in_bytes(group) for group in places.view(-1, 32).tolist()]
            shape = (*self.exponents[name].shape, 16)
            tensors[f"{name}_blocks"] = torch.tensor(packed, dtype=torch.uint8).view(shape)
            tensors[f"{name}_scales"] = self.exponents[name].to(torch.uint8)
        save_file(tensors, folder / "model.safetensors")
        edit(folder / "config.json", quantization_config={"quant_method": "mxfp4"})

    def write_gguf(self, path: Path, **fields: Any) -> None:
        """Write a GGUF file with blocks of MXFP4, as llama.cpp's converter does."""
        blocks: Tensors = {}
        for name, places in self.places.items():
            rows = torch.tensor([self._block(group) for group in places.view(-1, 32).tolist()], dtype=torch.uint8)
            exponents = self.exponents[name].view(-1, 1).to(torch.uint8)
            stored = torch.cat((exponents, rows), dim=1).view(*places.shape[:2], -1)
            if "gate_up" in name:
                blocks |= {name.replace("gate_up", "gate"): stored[:, ::2].contiguous()}
                blocks |= {name.replace("gate_up", "up"): stored[:, 1::2].contiguous()}
            else:
                blocks[name] = stored
        write_gguf(path, self.oracle, "gpt-oss", blocks=blocks, **GGUF_FIELDS | fields)

    @staticmethod
    def _block(numbers: list[int]) -> list[int]:
        """Return the bytes of 32 numbers, the first 16 of them in the low halves."""
        return [low | high << 4 for low, high in zip(numbers[:16], numbers[16:], strict=True)]


def mxfp4_experts() -> Mxfp4Experts:
    """Return a model of two layers."""
    oracle = random_model("GptOss", **CHANGES)
    places: Tensors = {}
    exponents: Tensors = {}
    state = oracle.state_dict()
    for seed, name in enumerate(name for name in state if name.endswith(("gate_up_proj", "down_proj"))):
        num_experts, num_inputs, num_outputs = state[name].shape
        shape = (num_experts, num_outputs, num_inputs)
        places[name] = random_places(*shape, seed=seed)
        exponents[name] = 123 + random_places(num_experts, num_outputs, num_inputs // 32, seed=seed + 100) % 3
        state[name].copy_(_meant(places[name], exponents[name]).transpose(1, 2))
    return Mxfp4Experts(oracle, places, exponents)


def _meant(places: Tensor, exponents: Tensor) -> Tensor:
    """Return the numbers, one after another."""
    groups = zip(places.view(-1, 32).tolist(), exponents.flatten().tolist(), strict=True)
    return torch.tensor([[E2M1[place] * 2.0 ** (e - 127) for place in group] for group, e in groups]).view(places.shape)
