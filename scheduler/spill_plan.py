"""Whether several engines can have their spill files, found out before any of them is loaded."""

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from caravan.model.spill_files import spill_files, spill_folder
from caravan.scheduler.memory_needs import PlanFailed
from caravan.scheduler.messages import StartEngine


def check_spill_device(start: StartEngine, device: torch.device) -> None:
    """Raise ValueError for an engine with a spill file on a GPU."""
    if start.kv_spill_bytes and device.type != "cpu":
        raise ValueError("--kv-spill keeps blocks of the CPU's memory; it cannot be combined with a GPU. Remove it.")


def check_spill_files(starts: Sequence[StartEngine], environ: Mapping[str, str] = os.environ) -> PlanFailed | None:
    """Return the first engine that can have no file in the cache, None if all can; raises OSError.

    A model has one file there, so two engines with the same model would remove each other's. The files that exist
    already make room for the new ones.
    """
    num_bytes = [start.kv_spill_bytes for start in starts]
    if not any(num_bytes):
        return None
    paths = [str(Path(start.model_path).resolve()) for start in starts]
    folder = spill_folder(environ)
    known_bytes = sum(file.num_bytes for file in spill_files(folder) if file.header and file.header.model_path in paths)
    disk = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free_bytes = shutil.disk_usage(disk).free + known_bytes
    for index, path in enumerate(paths):
        if path in paths[:index]:
            return PlanFailed(
                index=index, reason="--kv-spill keeps one file for a model, and two entries have this one."
            )
        if sum(num_bytes[: index + 1]) > free_bytes:
            fact = f"the files of {index + 1} models need {sum(num_bytes[: index + 1]):,} bytes"
            reason = f"--kv-spill: {fact}, but {folder} has {free_bytes:,}. Choose another size."
            return PlanFailed(index=index, reason=reason)
    return None
