"""What happens when the memory of a GPU is used up."""

import contextlib
import logging
from collections.abc import Iterator

import torch

from caravan.scheduler.engine import Engine
from caravan.scheduler.messages import StepOutput

logger = logging.getLogger(__name__)


def step_with_room(engine: Engine) -> StepOutput:
    """Return the output of a step; if a GPU has too little memory for it, make the pool smaller and return no output.

    Any other error that is no request's fault ends this process, and the requests continue in the next one.
    """
    try:
        return engine.step()
    except torch.OutOfMemoryError as error:  # its traceback holds tensors until here
        logger.warning("The GPU has too little memory for a step; the KV pool shrinks. %s", error)
    torch.cuda.empty_cache()
    engine.shrink_pool()
    return StepOutput(outputs=[], stats=engine.scheduler.stats())


@contextlib.contextmanager
def explained_shortage(what: str) -> Iterator[None]:
    """Raise a ValueError that names the options that help, if a GPU has too little memory for `what` at the start."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise ValueError(
            f"The GPU has too little memory for {what}. Lower --kv-cache-memory, --max-batch-tokens or --max-num-seqs, "
            f"or choose a smaller --quantization. {error}"
        ) from None
