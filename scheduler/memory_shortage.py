"""What happens when the memory of a GPU is used up."""

import contextlib
import logging
from collections.abc import Iterator

from caravan.scheduler.config import Shortage
from caravan.scheduler.engine import Engine
from caravan.scheduler.faults import is_out_of_memory
from caravan.scheduler.messages import StepOutput

logger = logging.getLogger(__name__)


def step_with_room(engine: Engine) -> StepOutput:
    """Return the output of a step; if a GPU has too little memory for it, make the pool smaller and return no output.

    Any other error that is no request's fault ends this process, and the requests continue in the next one.
    """
    try:
        return engine.step()
    except Exception as error:  # its traceback holds tensors until the end
        if not is_out_of_memory(error):
            raise
        logger.warning("The GPU has too little memory for a step; the KV pool shrinks. %s", error)
    engine.shrink_pool()
    return StepOutput(outputs=[], stats=engine.scheduler.stats())


@contextlib.contextmanager
def explained_shortage(what: str) -> Iterator[None]:
    """Raise a Shortage that names the options that help, if a GPU has too little memory for `what` at the start."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise Shortage(
            f"The GPU has too little memory for {what}. Lower --kv-cache-memory, --max-batch-tokens or --max-num-seqs, "
            f"or choose a smaller --quantization. {error}"
        ) from None
