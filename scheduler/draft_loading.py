"""Load a draft model, and check that it has the vocabulary of the model that it drafts for."""

from dataclasses import dataclass
from pathlib import Path

import torch

from caravan.model.backend import Backend
from caravan.model.checkpoint.checkpoint import Checkpoint, num_parameters
from caravan.model.kv_cache import choose_kv_dtype, kv_bytes_per_token
from caravan.model.llama import Llama
from caravan.model.loader import load_model, open_checkpoint
from caravan.model.tokenizer.loader import load_tokenizer
from caravan.scheduler.messages import StartEngine


@dataclass(frozen=True, kw_only=True)
class LoadedDraft:
    """A draft model with what the engine must know of it."""

    model: Llama
    kv_dtype: torch.dtype
    kv_bytes_per_token: int
    weight_bytes: int
    text: str  # its size, for people


def check_vocabulary(draft: Checkpoint, target: Checkpoint) -> None:
    """Raise ValueError unless each token id of the draft model has the same text as in the target."""
    way_out = "A draft model must have the same vocabulary, such as a smaller model of the same family."
    vocab_size, draft_size = target.config.vocab_size, draft.config.vocab_size
    if draft_size != vocab_size:
        raise ValueError(f"--draft-model: it has {draft_size:,} tokens, the model {vocab_size:,}. {way_out}")
    tokenizer, other = (load_tokenizer(one.path).resized(vocab_size) for one in (target, draft))
    for token_id in range(vocab_size):
        if tokenizer.token_bytes(token_id) != other.token_bytes(token_id):
            texts = f"{other.token_bytes(token_id)!r:.40}, in the model {tokenizer.token_bytes(token_id)!r:.40}"
            raise ValueError(f"--draft-model: token {token_id} is {texts}. {way_out}")


def open_draft(path: Path, target: Checkpoint) -> Checkpoint:
    """Return the checkpoint of a draft model for a target; raises ValueError or OSError."""
    try:
        checkpoint = open_checkpoint(path)
    except ValueError as error:
        raise ValueError(f"--draft-model: {error}") from None
    check_vocabulary(checkpoint, target)
    return checkpoint


def load_draft(
    checkpoint: Checkpoint, backend: Backend, start: StartEngine, max_model_len: int, device: torch.device
) -> LoadedDraft:
    """Return the draft model, for texts of max_model_len tokens; raises as load_model does."""
    max_position = min(max_model_len, checkpoint.config.max_position)
    model = load_model(checkpoint, backend.dtype, device, max_position, backend.make_model)
    kv_dtype = choose_kv_dtype(start.kv_cache_dtype, backend.dtype)
    weight_bytes = sum(weight.nbytes for weight in model.parameters())
    return LoadedDraft(
        model=model,
        kv_dtype=kv_dtype,
        kv_bytes_per_token=kv_bytes_per_token(model.config, kv_dtype),
        weight_bytes=weight_bytes,
        text=f"{checkpoint.path.name}: {num_parameters(checkpoint) / 1e6:,.0f} million parameters "
        f"({weight_bytes / 1e6:,.0f} MB)",
    )
