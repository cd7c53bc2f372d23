"""ResidentAdapters: the adapters that requests can name; those that are in use are in memory."""

import logging
from collections import OrderedDict
from collections.abc import Callable
from collections.abc import Sequence as Seq
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from caravan.model.checkpoint.adapter_digest import adapter_digest
from caravan.model.checkpoint.adapter_parts import adapter_parts
from caravan.model.checkpoint.adapter_sites import adapter_sites, linear_shapes
from caravan.model.checkpoint.checkpoint import Checkpoint
from caravan.model.checkpoint.peft import open_adapter
from caravan.model.cpu.adapters import LANES
from caravan.model.forward_batch import ForwardBatch
from caravan.model.lora import NO_ADAPTER, AdapterSlots
from caravan.scheduler.config import MAX_RESIDENT_ADAPTERS
from caravan.scheduler.messages import AdapterSource, StartEngine
from caravan.scheduler.preparation import NO_WAIT, AdapterState
from caravan.scheduler.sequence import ScheduledSequence, Sequence

_BYTES = 4  # of a number, in plain PyTorch; the kernels take half of it
_Put = Callable[[int], None]  # puts an adapter that was read into a slot

logger = logging.getLogger(__name__)


class AdapterUnavailable(Exception):
    """An adapter is not in memory; the text says why."""


class _Read(NamedTuple):
    source: AdapterSource
    put: "Future[_Put]"


class ResidentAdapters:
    """Each adapter that a step needs gets a slot; the one that was used longest ago makes room.

    A thread reads them, one after the other, while steps go on; a sequence joins when its adapter is in memory.
    """

    def __init__(
        self,
        slots: AdapterSlots,
        checkpoint: Checkpoint,
        sources: Seq[AdapterSource],
        *,
        max_rank: int = 0,
        is_replacement: bool = False,
    ) -> None:
        """Check all adapters, and load none; for a replacement they have been checked.

        Others with the memory of `max_rank` in all layers can be added. Raises ValueError, which names the adapter, or
        OSError.
        """
        self._slots = slots
        self._checkpoint = checkpoint
        self._sources = {source.name: source for source in sources}
        self._resident: OrderedDict[str, int] = OrderedDict()  # name -> slot, the last one used at the end
        self._free = [*range(MAX_RESIDENT_ADAPTERS)]  # slots
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="adapters")
        self._read: _Read | None = None  # the adapter that is read now, or that waits for its slot
        self._max_rank = max_rank
        self._max_added_bytes = _num_bytes([(*one, max_rank) for one in linear_shapes(checkpoint)]) if max_rank else 0
        sizes = [self._max_added_bytes] * MAX_RESIDENT_ADAPTERS
        for source in () if is_replacement else sources:
            try:
                sizes.append(self._checked_bytes(source))
            except ValueError as error:
                raise ValueError(f"--lora {source.name}: {error}") from None
        self.max_bytes = sum(sorted(sizes)[-MAX_RESIDENT_ADAPTERS:])  # in memory at most

    @property
    def names(self) -> list[str]:
        """The names of those in memory, the last one used at the end."""
        return [*self._resident]

    def check(self, source: AdapterSource) -> "Future[str]":
        """Return why an adapter cannot be added, in the end an empty text if it can; a thread reads it."""
        return self._thread.submit(self._problem, source)

    def set_sources(self, sources: Seq[AdapterSource]) -> None:
        """Let requests name these adapters from now on; others, which no running request has, leave the memory."""
        known, self._sources = self._sources, {source.name: source for source in sources}
        for name in [name for name in self._resident if known[name] != self._sources.get(name)]:
            slot = self._resident.pop(name)
            self._slots.remove(slot)
            self._free.append(slot)
        if self._read is not None and self._read.source not in sources:
            self._read = None

    def find(self, name: str, running: Seq[Sequence]) -> AdapterState:
        """Return the state of an adapter for a sequence that could join; see Adapters.find."""
        if not name or name in self._resident:
            return NO_WAIT
        if self._read is not None:
            if not self._read.put.done():
                return AdapterState(is_ready=False)
            (source, read), self._read = self._read, None
            try:
                self._place(source.name, read.result(), {one.request.adapter for one in running})
            except AdapterUnavailable as error:
                logger.exception("An adapter cannot be read.")
                if source.name == name:
                    return AdapterState(is_ready=True, problem=str(error))
            if source.name == name:
                return NO_WAIT
        if name not in self._sources:
            return AdapterState(is_ready=True, problem=f"The adapter {name} has been unloaded.")
        self._read = _Read(self._sources[name], self._thread.submit(self._put_of, self._sources[name]))
        return AdapterState(is_ready=False)

    def assigned(self, batch: ForwardBatch, plan: Seq[ScheduledSequence]) -> ForwardBatch:
        """Return the batch of a plan with the slots of the adapters that its rows have.

        Raises AdapterUnavailable if one of them is not in memory.
        """
        names = [scheduled.sequence.request.adapter for scheduled in plan]
        if not any(names):
            return batch
        for name in dict.fromkeys(filter(None, names)):
            if name not in self._resident:
                raise AdapterUnavailable(f"The adapter {name} is not in memory.")
            self._resident.move_to_end(name)
        slots = np.array([self._resident[name] if name else NO_ADAPTER for name in names], dtype=np.int64)
        lengths = np.diff(batch.query_start_loc.numpy())
        return replace(batch, row_slots=torch.from_numpy(np.repeat(slots, lengths)))

    def _place(self, name: str, put: _Put, used: set[str]) -> None:
        """Put an adapter into a slot, if need be that of the one that was used longest ago and is not used now."""
        if not self._free:
            idle = next(other for other in self._resident if other not in used)  # the scheduler leaves one
            slot = self._resident.pop(idle)
            self._slots.remove(slot)
            self._free.append(slot)
        slot = self._free.pop(0)
        put(slot)
        self._resident[name] = slot

    # What follows runs in the thread.

    def _put_of(self, source: AdapterSource) -> _Put:
        """Read an adapter; raises AdapterUnavailable."""
        try:
            if adapter_digest(Path(source.path)) == source.digest:
                return self._slots.prepare(adapter_parts(self._checkpoint, open_adapter(Path(source.path))))
        except Exception as error:  # safetensors has errors of its own
            raise AdapterUnavailable(f"The adapter {source.name} cannot be read: {type(error).__name__}.") from error
        raise AdapterUnavailable(f"The files of the adapter {source.name} have changed since it was loaded.")

    def _problem(self, source: AdapterSource) -> str:
        try:
            num_bytes = self._checked_bytes(source)
            if num_bytes > self._max_added_bytes:
                return (
                    f"{source.name} takes {num_bytes:,} bytes of memory, but an adapter of --max-lora-rank "
                    f"{self._max_rank} in all layers only {self._max_added_bytes:,}."
                )
            if adapter_digest(Path(source.path)) != source.digest:
                return f"The files of {source.name} changed while they were read. Try again."
        except OSError as error:
            return f"{source.name} cannot be read: {error.strerror}."
        except ValueError as error:  # no client reads a path of this machine
            return str(error).replace(source.path, source.name).replace(str(self._checkpoint.path), "the model")
        except Exception:
            logger.exception("The adapter %s cannot be read.", source.name)
            return f"{source.name} cannot be read; the cause is in the log of the server."
        return ""

    def _checked_bytes(self, source: AdapterSource) -> int:
        """Return the memory that an adapter takes; raises OSError or ValueError if it is not one of this model."""
        adapter = open_adapter(Path(source.path))
        adapter_sites(self._checkpoint, adapter)
        return _num_bytes([*adapter.shapes.values()])


def resident_adapters(
    start: StartEngine, make_slots: Callable[[], AdapterSlots], checkpoint: Checkpoint
) -> ResidentAdapters | None:
    """Return the adapters of a start message, None if there never are any."""
    if not start.adapters and not start.max_lora_rank:
        return None
    return ResidentAdapters(
        make_slots(),
        checkpoint,
        start.adapters,
        max_rank=start.max_lora_rank,
        is_replacement=start.is_replacement,
    )


def check_adapter_device(start: StartEngine, device: torch.device) -> None:
    """Raise ValueError, in one line, if requests cannot have adapters of their own on a device or on several ranks."""
    if not start.adapters and not start.max_lora_rank:
        return
    name = "--lora" if start.adapters else "--lora-folder"
    if device.type != "cpu":
        raise ValueError(f"{name} needs --device cpu. Merge one adapter with --merge-lora.")
    if start.num_ranks > 1:
        raise ValueError(f"{name} cannot be combined with --tensor-parallel. Merge one adapter with --merge-lora.")


def _num_bytes(shapes: Seq[tuple[int, int, int]]) -> int:
    """Return the memory of an adapter with matrices of these outputs, inputs and ranks."""
    return sum(
        _BYTES * -(-rank // LANES) * LANES * (num_inputs + -(-num_outputs // LANES) * LANES)
        for num_outputs, num_inputs, rank in shapes
    )
