"""Levels of x86-64 processors, for each of which the wheel has a library of the kernels."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

# Features by their names in `torch.cpu.get_capabilities()`, with the compiler's flag for each.
_AVX2 = {
    "avx2": "-mavx2",
    "fma3": "-mfma",
    "f16c": "-mf16c",
    "bmi": "-mbmi",
    "bmi2": "-mbmi2",
    "lzcnt": "-mlzcnt",
}
_AVX512 = {
    **_AVX2,
    "avx512_f": "-mavx512f",
    "avx512_bw": "-mavx512bw",
    "avx512_cd": "-mavx512cd",
    "avx512_dq": "-mavx512dq",
    "avx512_vl": "-mavx512vl",
    "avx512_vnni": "-mavx512vnni",
    "avx512_bf16": "-mavx512bf16",
}
_AMX = {
    **_AVX512,
    "amx_tile": "-mamx-tile",
    "amx_int8": "-mamx-int8",
    "amx_bf16": "-mamx-bf16",
}


@dataclass(frozen=True, kw_only=True)
class Level:
    """Features that a build may use; it runs on every processor that has them all."""

    name: str
    flags_of_features: Mapping[str, str]

    @property
    def library(self) -> str:
        """The name of its operators in `torch.ops`."""
        return f"caravan_{self.name}"

    @property
    def target(self) -> tuple[str, ...]:
        """The compiler's flags: they enable no feature that is not checked."""
        return tuple(self.flags_of_features.values())

    def runs_on(self, capabilities: Mapping[str, object]) -> bool:
        """Return whether a processor with these capabilities has all features of the level."""
        return all(capabilities.get(feature) for feature in self.flags_of_features)

    def is_all_of(self, capabilities: Mapping[str, object]) -> bool:
        """Return whether the processor has no feature that only a higher level uses."""
        return not any(capabilities.get(feature) for feature in _AMX.keys() - self.flags_of_features.keys())


LEVELS = tuple(  # the best first
    Level(name=name, flags_of_features=MappingProxyType(features))
    for name, features in (("amx", _AMX), ("avx512", _AVX512), ("avx2", _AVX2))
)


def best_level(capabilities: Mapping[str, object]) -> Level | None:
    """Return the highest level that runs on a processor with these capabilities, or None."""
    return next((level for level in LEVELS if level.runs_on(capabilities)), None)
