"""Load a model from a checkpoint on disk, tensor by tensor."""

import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from caravan.model.attention.reference import ReferenceAttention
from caravan.model.blocks import NotFinite
from caravan.model.checkpoint import BrokenCheckpoint
from caravan.model.checkpoint.checkpoint import Checkpoint, check_shapes, read_weights, weight_parts
from caravan.model.checkpoint.folder_links import check_links
from caravan.model.checkpoint.gguf import open_gguf
from caravan.model.checkpoint.huggingface import open_huggingface
from caravan.model.checkpoint.llama2c import open_llama2c
from caravan.model.checkpoint.meta import open_meta
from caravan.model.config import ModelConfig, UnsupportedModel
from caravan.model.cpu.weights_cache import WeightsCache
from caravan.model.exchange import Exchange
from caravan.model.llama import Llama
from caravan.model.share import Share
from caravan.model.split import split_model, split_of


def plain_llama(config: ModelConfig) -> Llama:
    """Return the model in plain PyTorch, without weights."""
    return Llama(config, ReferenceAttention())


def open_checkpoint(path: Path, adapter_path: Path | None = None) -> Checkpoint:
    """Return the checkpoint at `path`, with the shapes of its tensors checked but no values read.

    With the folder of an adapter its weights are those with the adapter merged into them.
    Raises OSError, BrokenCheckpoint or UnsupportedModel.
    """
    if path.is_dir():
        check_links(path)
    if path.suffix == ".bin":
        checkpoint = open_llama2c(path)
    elif path.is_file():
        checkpoint = open_gguf(path)
    elif (path / "config.json").is_file():
        checkpoint = open_huggingface(path)
    elif (path / "params.json").is_file():
        checkpoint = open_meta(path)
    else:
        raise UnsupportedModel(f"{path} holds no model: it has neither a config.json nor a params.json.")
    check_shapes(checkpoint)
    if adapter_path is None:
        return checkpoint
    from caravan.model.checkpoint.merge import merged  # here: most models have no adapter
    from caravan.model.checkpoint.peft import open_adapter

    return merged(checkpoint, open_adapter(adapter_path))


def load_model(
    checkpoint: Checkpoint,
    dtype: torch.dtype,
    device: torch.device,
    max_position: int,
    make_model: Callable[[ModelConfig], Llama] = plain_llama,
    cache: WeightsCache | None = None,
    share: Share | None = None,
    exchange: Exchange | None = None,
) -> Llama:
    """Return the model of a checkpoint, its weights in dtype on device, ready to run.

    Packed weights are mapped from the cache if there is one with a file of them.
    With an exchange the model has the share of one rank, and every call on it must be made on all ranks at once.

    It can run positions below max_position. The module is made without memory and each weight is set as it is read, so
    peak memory is the final size and one tensor.
    Raises BrokenCheckpoint, and ValueError if the model cannot be split so.
    """
    with torch.device("meta"):
        model = make_model(checkpoint.config)
    share = share or Share()
    if exchange is not None:
        split_model(model, split_of(model.config, share, exchange))
    elif share.num_ranks > 1:
        raise ValueError(f"Rank {share.rank} of {share.num_ranks} needs an exchange with the others.")
    started = time.monotonic()
    mapped = frozenset[str]() if cache is None else cache.restore(model, checkpoint, dtype)
    weights = read_weights(
        checkpoint, dtype, model.grouped_weights(), model.weights_in_blocks(), mapped, share, by_rows=model.takes_rows
    )
    num_weights = len(weight_parts(checkpoint).keys() - mapped)
    # disable=None: a bar on terminals only
    for name, weight in tqdm(weights, "Loading weights", num_weights, leave=False, delay=0.5, disable=None):
        try:
            model.place_weight(name, weight.to(device) if isinstance(weight, Tensor) else weight)
        except NotFinite:
            raise BrokenCheckpoint(f"{checkpoint.path}: {name} holds values that are not finite numbers.") from None
    missing = [name for name, parameter in model.named_parameters() if parameter.is_meta]
    assert not missing, f"the checkpoint reader left out {missing}"
    if cache is not None and not mapped:
        cache.after_packing(model, checkpoint, time.monotonic() - started)
    model.set_max_position(max_position, device)
    return model.eval()
