"""The fingerprint of an engine: it changes when the bits of answers may change, and else not."""

import hashlib
import os
from collections.abc import Mapping

import msgspec
import torch

from caravan.model.attention.cpu import CpuAttention
from caravan.model.llama import Llama
from caravan.model.rope_scaling import DynamicScaling
from caravan.model.weights_header import WeightsKey

_VARIABLES = ("ATEN_", "DNNL_", "MKL_", "ONEDNN_")  # beginnings of the names by which libraries choose their code
_NUM_DIGITS = 16


def fingerprint(
    key: WeightsKey,
    model: Llama,
    kv_dtype: torch.dtype,
    *,
    max_model_len: int,
    backend: str,
    device: str,
    environ: Mapping[str, str] = os.environ,
) -> str:
    """Return the fingerprint of a model as an engine computes it.

    It depends on the files of the model (their sizes and times), quantization, data types, the code and the libraries,
    the processor or GPU, and the kernels. Sizes of batches, blocks and pools are not part of it, nor the number of
    threads: no bit depends on them. The context length is if the scaling of RoPE depends on it.
    """
    attention = model.paged_attention
    kernels = attention.kernels if isinstance(attention, CpuAttention) else torch.backends.cpu.get_cpu_capability()
    parts = [
        *([file.num_bytes, file.modified_ns] for file in key.files),
        msgspec.to_builtins(msgspec.structs.replace(key, files=[])),
        f"{type(model).__name__}, {type(attention).__name__}, {kernels}",
        str(kv_dtype),
        backend,
        device,
        max_model_len if isinstance(model.config.rope_scaling, DynamicScaling) else 0,
        library_variables(environ),
    ]
    return f"fp_{hashlib.sha256(msgspec.json.encode(parts, order='sorted')).hexdigest()[:_NUM_DIGITS]}"


def library_variables(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables by which PyTorch's libraries choose their code."""
    return {name: value for name, value in sorted(environ.items()) if name.startswith(_VARIABLES)}
