"""Caravan: an inference server for Llama models, and the same engine as a Python class.

The folders `server`, `scheduler` and `model` stand beside this one and are linked here: together they are the package.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from caravan.offline.llm import LLM
    from caravan.offline.results import Choice, GenerationResult, StreamDelta, TokenLogprob
    from caravan.offline.sampling_params import SamplingParams

__version__ = "0.2.0"
__all__ = ["LLM", "Choice", "GenerationResult", "SamplingParams", "StreamDelta", "TokenLogprob", "__version__"]


def __getattr__(name: str) -> Any:
    """Import a public class when it is first used: the command line and the version need no torch."""
    from importlib import import_module

    modules = {"LLM": "caravan.offline.llm", "SamplingParams": "caravan.offline.sampling_params"}
    if name not in __all__:
        raise AttributeError(f"module 'caravan' has no attribute '{name}'")
    value = globals()[name] = getattr(import_module(modules.get(name, "caravan.offline.results")), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
