"""WeightsCache: packed weights are written to a file once, from which later engines map them instead of packing."""

import contextlib
import logging
import os
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path

import torch

from caravan.model.checkpoint.checkpoint import Checkpoint, weight_parts
from caravan.model.cpu.llama import CpuLlama
from caravan.model.cpu.weights_data import (
    is_of_expert,
    map_weights,
    place_weights,
    sample_digest,
    stored_tensors,
    write_weights,
)
from caravan.model.cpu.weights_key import weights_key
from caravan.model.llama import Llama
from caravan.model.prefault import drop_pages
from caravan.model.weights_files import NoRoom, make_room, new_file, weights_folder
from caravan.model.weights_header import (
    UnusableWeights,
    WeightsHeader,
    WeightsKey,
    encode_header,
    open_weights,
    read_header,
)

MIN_BYTES = 256 * 2**20  # smaller models are packed in less time than a file of them is worth
_LOWEST_PRIORITY = 19
_CLOCK_REALTIME_COARSE = 5  # clock_gettime(2)

logger = logging.getLogger(__name__)


class WeightsCache:
    """The packed weights of one model in the user's cache."""

    def __init__(
        self, limit_bytes: int, environ: Mapping[str, str] = os.environ, *, min_bytes: int = MIN_BYTES
    ) -> None:
        """All files together take up to limit_bytes; with 0 none is read or written."""
        self.mapped_bytes = 0  # of the model, in pages that engines share
        self._limit_bytes = limit_bytes
        self._min_bytes = min_bytes
        self._environ = environ
        self.opened_ns = file_clock_ns()  # a file that changes later may be of two versions
        self._key: WeightsKey | None = None
        self._is_unusable = False  # the file of that key
        self._packed: tuple[CpuLlama, WeightsKey, Checkpoint] | None = None  # to be written

    def restore(self, model: Llama, checkpoint: Checkpoint, dtype: torch.dtype) -> frozenset[str]:
        """Set weights from the file that fits, if there is one; return the names of those that are set.

        A file that cannot be used is a logged warning. Without a file the model is as before.
        """
        if not self._limit_bytes or not isinstance(model, CpuLlama):
            return frozenset()
        started = time.monotonic()
        try:
            key = weights_key(checkpoint, model, dtype)
            path = weights_folder(self._environ) / key.file_name
        except OSError as error:
            logger.warning("The packed weights cannot be kept: %s.", error)
            return frozenset()
        self._key = key
        try:
            with open_weights(path) as file:
                header, start = read_header(file)
                if header.key != key:
                    raise UnusableWeights("it is of another model or version")
                tensors = map_weights(file, start, header)
                if sample_digest(tensors) != header.samples:
                    raise UnusableWeights("its data is damaged")
                for stored, tensor in zip(header.tensors, tensors, strict=True):
                    if is_of_expert(stored.name):  # of which samples were read
                        drop_pages(tensor)
                place_weights(model, header.tensors, tensors)
                self.mapped_bytes = os.fstat(file.fileno()).st_size
                with contextlib.suppress(OSError):  # a cache that is read-only
                    os.utime(file.fileno())
        except (FileNotFoundError, NotADirectoryError):
            return frozenset()
        except (OSError, UnusableWeights) as error:
            self._is_unusable = True
            fact = error.strerror if isinstance(error, OSError) else error
            logger.warning("The packed weights in %s are not used: %s. The weights are packed again.", path, fact)
            return frozenset()
        seconds = time.monotonic() - started
        logger.info(
            "The packed weights (%.0f MB) were mapped from %s in %.2f s.", self.mapped_bytes / 1e6, path, seconds
        )
        in_file = {stored.name for stored in header.tensors}
        return frozenset(weight_parts(checkpoint)) - ({"embedding.weight"} - in_file)

    def key_of(self, model: Llama, checkpoint: Checkpoint, dtype: torch.dtype) -> WeightsKey | None:
        """Return the key of a model's weights, None if its files cannot be examined."""
        if self._key is not None:
            return self._key
        with contextlib.suppress(OSError):
            return weights_key(checkpoint, model, dtype)
        return None

    def after_packing(self, model: Llama, checkpoint: Checkpoint, seconds: float) -> None:
        """If the weights are worth a file, log how long packing took, and have them written later."""
        if not isinstance(model, CpuLlama):
            return
        num_bytes = sum(weight.nbytes for weight in model.parameters())
        if num_bytes >= self._min_bytes:
            logger.info("The weights (%.0f MB) were packed in %.2f s.", num_bytes / 1e6, seconds)
            if self._key is not None:
                self._packed = model, self._key, checkpoint

    def write_in_background(self) -> None:
        """Call `write` in a thread of the lowest priority, which writes for a fifth of the time."""

        def run() -> None:
            if sys.platform == "linux":  # where a thread has a priority of its own
                with contextlib.suppress(OSError):
                    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LOWEST_PRIORITY)
            self.write()

        threading.Thread(target=run, name="weights-cache", daemon=True).start()

    def write(self) -> None:
        """Write the weights that were packed, and remove files over the limit; problems are logged."""
        if self._key is None:
            return
        packed, self._packed = self._packed, None
        try:
            folder = weights_folder(self._environ)
            if packed is None:
                if folder.is_dir():
                    make_room(folder, 0, self._limit_bytes)
                return
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._write(folder, *packed)
        except NoRoom as error:
            logger.info("The packed weights are not kept. %s", error)
        except OSError as error:
            logger.warning("The packed weights cannot be kept: %s. The next start packs them again.", error)

    def _write(self, folder: Path, model: CpuLlama, key: WeightsKey, checkpoint: Checkpoint) -> None:
        started = time.monotonic()
        path = folder / key.file_name
        # Of the time in which the model was loaded: its weights could be of two versions of a file.
        if any(file.changed_ns >= self.opened_ns for file in key.files) or (
            weights_key(checkpoint, model, getattr(torch, key.dtype)).files != key.files
        ):
            logger.warning("The packed weights are not kept: %s changed while it was loaded.", checkpoint.path)
            return
        if self._is_unusable:
            path.unlink(missing_ok=True)
        elif path.exists():
            logger.info("The packed weights were written to %s by another engine.", path)
            return
        stored, tensors, num_data_bytes = stored_tensors(model)
        head = encode_header(
            WeightsHeader(
                key=key,
                model_path=str(checkpoint.path.resolve()),
                num_data_bytes=num_data_bytes,
                tensors=stored,
                samples=sample_digest(tensors),
            )
        )
        make_room(folder, len(head) + num_data_bytes, self._limit_bytes)
        with new_file(path) as file:
            if file is None:
                logger.info("Another engine is writing the packed weights.")
                return
            file.write(head)
            write_weights(file, tensors)
        logger.info(
            "The packed weights were written to %s in %.1f s; the next engine maps them.",
            path,
            time.monotonic() - started,
        )


def file_clock_ns() -> int:
    """Return a time that is not after the one recorded for a file that changes now.

    Linux records the time of the last tick, or a finer one.
    """
    return time.clock_gettime_ns(_CLOCK_REALTIME_COARSE) if sys.platform == "linux" else time.time_ns()
