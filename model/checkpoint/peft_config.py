"""LoraConfig: the adapter_config.json of a PEFT folder, and the rank and scale of each matrix by it.

PEFT's fields: https://huggingface.co/docs/peft/package_reference/lora
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from caravan.model.checkpoint import BrokenCheckpoint
from caravan.model.checkpoint.json_file import JsonFile
from caravan.model.config import UnsupportedModel

MAX_RANK = 1024
_DEFAULT = 8  # of r and of lora_alpha
_MAX_PATTERNS = 2048
# A name, perhaps with one placeholder for the number of a layer: two repetitions can take a matcher for ever.
_NAME = r"(?:\w|\.|\\\.)"
_PATTERN = re.compile(rf"\^?{_NAME}*(?:(?:\\d|\[0-9\]|\.)[+*])?{_NAME}*\$?", re.ASCII)
_INITIAL_WEIGHTS = (True, False, "gaussian", "eva", "orthogonal")  # that leave the model's own weights as they are
_WITHOUT_EFFECT = frozenset(  # on what an adapter computes
    {
        *("auto_mapping", "base_model_name_or_path", "revision", "inference_mode", "lora_dropout", "peft_version"),
        *("layers_pattern", "exclude_modules", "megatron_config", "megatron_core", "loftq_config", "eva_config"),
        *("corda_config", "lora_ga_config", "runtime_config", "qalora_group_size", "ensure_weight_tying", "task_type"),
    }
)
_READ = frozenset(
    {
        *("peft_type", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "target_modules", "bias"),
        *("init_lora_weights", "layers_to_transform"),
    }
)


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """How the matrices of an adapter are made: LoRA (arXiv:2106.09685), rank-stabilised or not (arXiv:2312.03732)."""

    path: Path
    rank: int
    alpha: float
    rank_pattern: Mapping[str, int]  # name of a module, or the end of one after a dot -> rank
    alpha_pattern: Mapping[str, float]
    is_rank_stabilised: bool
    targets: tuple[str, ...] | None  # names of modules or ends of them; None: by a rule that the tensors stand for
    has_all_layers: bool
    base_model: str  # name, for people; empty: unknown

    def rank_of(self, module: str) -> int:
        """Return the rank of a module's matrices."""
        return self.rank_pattern.get(_first_match(self.rank_pattern, module), self.rank)

    def scale_of(self, module: str) -> float:
        """Return the factor of B A: alpha / rank, or alpha / sqrt(rank) if it is rank-stabilised."""
        alpha, rank = self.alpha_pattern.get(_first_match(self.alpha_pattern, module), self.alpha), self.rank_of(module)
        return alpha / (math.sqrt(rank) if self.is_rank_stabilised else rank)

    def is_target(self, module: str) -> bool:
        """Return whether the module is among the targets."""
        return self.targets is None or any(f".{module}".endswith(f".{target}") for target in self.targets)


def read_lora_config(path: Path) -> LoraConfig:
    """Return the configuration in a file; raises OSError, BrokenCheckpoint, or UnsupportedModel for another method."""
    fields = JsonFile(path)
    kind = fields.text("peft_type")
    if kind != "LORA":
        raise UnsupportedModel(f"{path} describes an adapter of the type {ascii(kind)[:40]}; only LORA is supported.")
    if fields.flag("use_dora", False):
        raise UnsupportedModel(f"{path} describes DoRA (use_dora), which is not supported.")
    if fields.text("bias", "none") != "none":
        raise UnsupportedModel(f"{path} has trained biases (bias), which are not supported.")
    initial = fields.raw().get("init_lora_weights", True)
    if not any(initial is one or (isinstance(one, str) and initial == one) for one in _INITIAL_WEIGHTS):
        raise UnsupportedModel(
            f"{path}: init_lora_weights is {ascii(initial)[:40]}, which changes the weights of the model itself. "
            "Convert the adapter to plain LoRA with PEFT."
        )
    for name, value in fields.raw().items():
        if name not in _READ | _WITHOUT_EFFECT and value not in (None, False, [], {}, "", 0):
            raise UnsupportedModel(f"{path} sets {ascii(name)[1:-1][:60]}, which is not supported.")
    targets = fields.raw().get("target_modules")
    if isinstance(targets, list) and not all(isinstance(target, str) for target in targets):
        raise BrokenCheckpoint(f"{path}: target_modules must be a list of texts.")
    return LoraConfig(
        path=path,
        rank=_rank(path, "r", fields.integer("r", _DEFAULT)),
        alpha=fields.number("lora_alpha", _DEFAULT),
        rank_pattern={name: _rank(path, name, part.integer(name)) for name, part in _pattern(fields, "rank_pattern")},
        alpha_pattern={name: part.number(name) for name, part in _pattern(fields, "alpha_pattern")},
        is_rank_stabilised=fields.flag("use_rslora", False),
        targets=tuple(targets) if isinstance(targets, list) else None,
        has_all_layers="layers_to_transform" not in fields and not fields.raw().get("exclude_modules"),
        base_model=fields.text("base_model_name_or_path", ""),
    )


def _pattern(fields: JsonFile, name: str) -> list[tuple[str, JsonFile]]:
    """Return the keys of a pattern, each with the object in which it is."""
    part = fields.part(name)
    if part is None:
        return []
    if len(part.raw()) > _MAX_PATTERNS:
        raise BrokenCheckpoint(f"{fields.path}: {name} has {len(part.raw())} entries, more than {_MAX_PATTERNS}.")
    for key in part.raw():
        if len(key) > 256 or not _PATTERN.fullmatch(key):
            raise UnsupportedModel(
                f"{fields.path}: {name} has the key {ascii(key)[:80]}; supported are names of modules with one "
                r"placeholder such as \d+ at most."
            )
    return [(key, part) for key in part.raw()]


def _first_match(patterns: Mapping[str, object], module: str) -> str:
    """Return the first key that is the module's name, or the end of it after a dot; empty if there is none."""
    return next((key for key in patterns if re.match(rf"(.*\.)?({key})$", module)), "")


def _rank(path: Path, name: str, rank: int) -> int:
    if not 1 <= rank <= MAX_RANK:
        raise UnsupportedModel(f"{path}: {ascii(name)[1:-1][:80]} is {rank}; ranks from 1 to {MAX_RANK} are supported.")
    return rank
