"""The type of a model's weights in its files as one word, as llama.cpp and Ollama write it: BF16, Q8_0, Q4_K_M."""

import math
from collections import Counter
from collections.abc import Mapping

from gguf import GGMLQuantizationType, LlamaFileType

from caravan.model.blocks import NVFP4_WITH_FACTOR

_SHORT = {"bfloat16": "BF16", "float16": "F16", "float32": "F32", "float64": "F64", NVFP4_WITH_FACTOR: "NVFP4"}


def main_type(shapes: Mapping[str, tuple[int, ...]], types: Mapping[str, str]) -> str:
    """Return the type that most of the numbers have, given the shape and the type of each tensor."""
    counts = Counter[str]()
    for name, kind in types.items():
        counts[kind] += math.prod(shapes[name])
    kind = max(counts, key=counts.__getitem__, default="")
    return _SHORT.get(kind, kind)


def type_without_blocks(stored_type: str, method: str) -> str:
    """Return the type of a quantized matrix that no kind of blocks keeps: that of its floats, or how it was made."""
    return stored_type if stored_type.startswith("F8") else method.upper()


def gguf_file_type(
    metadata: Mapping[str, object], shapes: Mapping[str, tuple[int, ...]], kinds: Mapping[str, GGMLQuantizationType]
) -> str:
    """Return the type that a GGUF file says it has, such as Q4_K_M, a mix of types; the main one if it says none.

    Source of the numbers: llama.cpp's `llama_ftype`.
    """
    number = metadata.get("general.file_type")
    known = [kind.name for kind in LlamaFileType if kind == number and kind != LlamaFileType.GUESSED]
    if not known:
        return main_type(shapes, {name: kind.name for name, kind in kinds.items()})
    return known[0].removeprefix("MOSTLY_").removeprefix("ALL_")
