"""The sentence of the guide, and what the default model makes of it."""

from functools import cache

import torch

from caravan.download.resolve import DEFAULT_MODEL, resolve_model
from caravan.model.loader import load_model, open_checkpoint
from caravan.model.tokenizer.loader import load_tokenizer
from caravan.model.tokenizer.tokenizer import Tokenizer
from caravan.model.trace.recording import Recording, record, recording_llama

SENTENCE = "The capital of France is Paris, and the capital of Italy is"
TOKENS = (
    *("The", " capital", " of", " France", " is", " Paris", ",", " and"),
    *(" the", " capital", " of", " Italy", " is"),
)
NEEDS_MODEL = ("attention", "events", "sampling", "tokens")  # figures that the default model computes


@cache  # for all figures
def recording() -> Recording:
    """Return what the model in plain PyTorch computes for the sentence."""
    path = resolve_model(DEFAULT_MODEL, print)
    model = load_model(open_checkpoint(path), torch.float32, torch.device("cpu"), 64, recording_llama)
    return record(model, token_ids(), layer=0, position=len(TOKENS) - 1)


@cache
def token_ids() -> list[int]:
    """Return the ids of the sentence's tokens, checked against their texts."""
    tokenizer = _tokenizer()
    ids = tokenizer.encode(SENTENCE)
    assert tuple(tokenizer.texts(ids)[: len(ids)]) == TOKENS
    return ids


def token_text(token_id: int) -> str:
    """Return the text of one token of the model."""
    return _tokenizer().texts([token_id])[0]


@cache
def _tokenizer() -> Tokenizer:
    return load_tokenizer(resolve_model(DEFAULT_MODEL, print))
