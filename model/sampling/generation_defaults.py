"""GenerationDefaults: the sampling parameters that a model suggests for requests without their own."""

from dataclasses import dataclass
from pathlib import Path

from caravan.model.checkpoint import BrokenCheckpoint
from caravan.model.checkpoint.json_file import JsonFile


@dataclass(frozen=True, kw_only=True)
class GenerationDefaults:
    """Sampling parameters with their names in requests; the defaults are OpenAI's."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0  # 0: all tokens
    min_p: float = 0.0
    repetition_penalty: float = 1.0


def load_generation_defaults(path: Path) -> GenerationDefaults:
    """Return the defaults in the generation_config.json of a model's folder; raises OSError or BrokenCheckpoint."""
    file = path / "generation_config.json"
    if not path.is_dir() or not file.is_file():
        return GenerationDefaults()
    config = JsonFile(file)

    def number(name: str, default: float, least: float, most: float) -> float:
        value = config.number(name, default)
        if not least <= value <= most:
            raise BrokenCheckpoint(f"{file}: {name} is {value:g}; it must be from {least:g} to {most:g}.")
        return value

    top_k = number("top_k", 0, -1, 2**31 - 1)
    if not top_k.is_integer():
        raise BrokenCheckpoint(f"{file}: top_k is {top_k:g}; it must be a whole number.")
    return GenerationDefaults(
        temperature=number("temperature", 1.0, 0, 2),
        top_p=number("top_p", 1.0, 0, 1),
        top_k=max(0, int(top_k)),  # -1 also means all tokens
        min_p=number("min_p", 0.0, 0, 1),
        repetition_penalty=number("repetition_penalty", 1.0, 0.01, 10),
    )
