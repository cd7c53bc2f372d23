"""The sampling parameters that the makers of a model suggest, for requests without their own."""

from pathlib import Path

from caravan.download.resolve import ALIASES
from caravan.model.sampling.generation_defaults import GenerationDefaults, load_generation_defaults


def suggested_sampling(model: str, path: Path) -> GenerationDefaults:
    """Return those of a model named `model` in the settings, at `path`; raises OSError or BrokenCheckpoint.

    An alias such as `smollm2` has those of its model card, a folder those of its generation_config.json, and anything
    else OpenAI's.
    """
    if (alias := ALIASES.get(model)) is not None:
        return GenerationDefaults(temperature=alias.temperature, top_p=alias.top_p)
    return load_generation_defaults(path)
