"""Build a Llama from a checkpoint on disk, tensor by tensor."""

from pathlib import Path

import torch

from model.attention import reference
from model.checkpoint import BrokenCheckpoint
from model.checkpoint.gguf import read_gguf_weights
from model.checkpoint.gguf_header import read_gguf_header
from model.config import config_from_gguf
from model.llama import Llama


def load_model(path: Path, dtype: torch.dtype, device: torch.device, max_position: int | None = None) -> Llama:
    """Return the model in a checkpoint file, its weights in dtype on device, ready to run.

    It can run positions below max_position (default: what it was trained for). The module is first made without
    memory, then each weight takes its place as it is read, so the peak is the final size and one tensor.
    Raises BrokenCheckpoint or UnsupportedModel.
    """
    header = read_gguf_header(path)
    config = config_from_gguf(header)
    with torch.device("meta"):
        model = Llama(config, reference.paged_attention)
    empty = {name: parameter.shape for name, parameter in model.named_parameters()}
    for name, tensor in read_gguf_weights(header, config, dtype):
        if empty.pop(name, None) != tensor.shape:
            raise BrokenCheckpoint(f"{path}: {name} has shape {list(tensor.shape)}, which the architecture does not.")
        model.place_weight(name, tensor.to(device))
    assert not empty, f"the checkpoint reader left out {sorted(empty)}"
    model.set_max_position(max_position or config.max_position, device)
    return model.eval()
