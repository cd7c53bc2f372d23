"""How an engine gets its spill file when it starts."""

import logging
import os
from collections.abc import Mapping
from pathlib import Path

from caravan.model.spill_file import SpillFile, UnusableSpill
from caravan.model.spill_files import remove_unneeded, spill_file_name, spill_folder
from caravan.model.spill_header import SpillKey
from caravan.scheduler.block_spill import BlockSpill
from caravan.scheduler.config import Shortage
from caravan.scheduler.engine import Engine
from caravan.scheduler.messages import StartEngine
from caravan.scheduler.spilling_blocks import use_spill

logger = logging.getLogger(__name__)


def attach_spill(engine: Engine, start: StartEngine, key: SpillKey, environ: Mapping[str, str] = os.environ) -> None:
    """Give an engine the spill file of a start message.

    If the file cannot be used, the first engine of a server does not start: raises Shortage. One that replaces
    another goes on without the file, after a warning.
    """
    try:
        file = _open(engine, start, key, environ)
    except (OSError, UnusableSpill) as error:
        path = start.kv_spill_path or getattr(error, "filename", None) or "the file in the cache"
        fact = error.strerror or error if isinstance(error, OSError) else error
        if not start.is_replacement:
            raise Shortage(
                f"--kv-spill {start.kv_spill_bytes:,} bytes: {path} cannot be used: {fact}. "
                "Choose another size or --kv-spill-path."
            ) from None
        logger.warning("The spill file is not used: %s: %s.", path, fact)
        return
    spill = BlockSpill(file, engine.kv_cache.block_rows(), engine.scheduler.pool)
    use_spill(engine.scheduler, spill)
    spill.start()
    logger.info(
        "The spill file %s has %d of at most %d blocks%s%s.",
        file.path,
        len(file.index),
        file.header.num_slots,
        f" ({file.emptied})" if file.emptied else "",
        "" if file.is_writer else "; another engine writes it",
    )


def _open(engine: Engine, start: StartEngine, key: SpillKey, environ: Mapping[str, str]) -> SpillFile:
    model_path = str(Path(start.model_path).resolve())
    path = Path(start.kv_spill_path)
    if not start.kv_spill_path:
        folder = spill_folder(environ)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = folder / spill_file_name(key)
        remove_unneeded(folder, model_path, path)
    block_bytes = sum(row.shape[1] for row in engine.kv_cache.block_rows())
    return SpillFile(path, key, model_path, block_bytes, start.kv_spill_bytes, is_in_cache=not start.kv_spill_path)
