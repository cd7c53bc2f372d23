"""Exchange: how ranks, the processes that compute one model together, get each other's outputs."""

import os
import sys
import tempfile
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch
from torch import Tensor

from caravan.model.cpu.build import load_kernels
from caravan.model.cpu.kernels import Kernels, NativeExchange

if TYPE_CHECKING:  # its import takes time, and most processes have one rank
    from torch.distributed import ProcessGroup


class ExchangeFailed(RuntimeError):
    """Another rank is gone, did not answer in time or computes another batch. The step cannot be run again."""


class Exchange(Protocol):
    """A connection of one rank with all others."""

    rank: int
    num_ranks: int

    def gather(self, part: Tensor, sizes: list[int]) -> Tensor:
        """Return the parts [T, sizes[rank]] of all ranks side by side, [T, sum(sizes)], on each of them.

        All ranks call it with the same T and sizes. Raises ExchangeFailed, then and ever after.
        """

    def close(self) -> None:
        """Leave the other ranks, whose calls fail from now on."""


@runtime_checkable
class KernelExchange(Exchange, Protocol):
    """An exchange that the CPU kernels can use themselves, between two products of a layer."""

    def native(self, kernels: Kernels) -> NativeExchange:
        """Return the exchange in C++."""


class SharedMemoryExchange:
    """An exchange between processes of one machine, through memory that all of them map.

    A rank that waits gives up its core after some microseconds. One whose process has ended is noticed within a tenth
    of a second; one that hangs, after the timeout.
    """

    def __init__(
        self, rank: int, num_ranks: int, memory: int, timeout_seconds: float, kernels: Kernels | None = None
    ) -> None:
        """`memory` is a descriptor of `new_memory`, the same file for all ranks; it can be closed afterwards.

        `kernels` is loaded if it is None. Raises ValueError, and KernelsUnavailable.
        """
        self.rank, self.num_ranks = rank, num_ranks
        self._kernels = load_kernels() if kernels is None else kernels
        self._native = self._kernels.share_memory(memory, rank, num_ranks, timeout_seconds)

    def gather(self, part: Tensor, sizes: list[int]) -> Tensor:
        """Implement Exchange.gather."""
        try:
            return self._native.gather(part, sizes)
        except RuntimeError as error:
            raise exchange_error(self._native, error) from None

    def close(self) -> None:
        """Implement Exchange.close. No other thread may be in a call."""
        self._native.close()

    def native(self, kernels: Kernels) -> NativeExchange:
        """Implement KernelExchange.native."""
        assert kernels is self._kernels, "an exchange belongs to one build of the kernels"
        return self._native


class DistributedExchange:
    """An exchange through a process group of torch.distributed: gloo between machines, NCCL between GPUs.

    The timeout is that of the group. An exchange by gloo takes 0.3 ms, one through shared memory some microseconds.
    """

    def __init__(self, group: "ProcessGroup") -> None:
        """`group` stays open when the exchange is closed."""
        self.rank, self.num_ranks = group.rank(), group.size()
        self._group = group
        self._native: NativeExchange | None = None
        self._failure = ""

    def gather(self, part: Tensor, sizes: list[int]) -> Tensor:
        """Implement Exchange.gather."""
        from torch.distributed import all_gather_single

        if self._failure:
            raise ExchangeFailed(self._failure)
        # A group wants parts of one size: each is filled up to the largest. Bytes, which every backend can send.
        widths = [size * part.itemsize for size in sizes]
        sent = torch.empty(len(part), max(widths), dtype=torch.uint8, device=part.device)
        sent[:, : widths[self.rank]] = part.contiguous().view(torch.uint8)
        received = sent.new_empty(self.num_ranks, *sent.shape)
        try:
            all_gather_single(received.flatten(0, 1), sent, self._group)
        except RuntimeError as error:
            self._failure = f"Rank {self.rank} of {self.num_ranks}: {str(error).splitlines()[0]}"
            raise ExchangeFailed(self._failure) from None
        parts = [rows[:, :width] for rows, width in zip(received, widths, strict=True)]
        return torch.cat(parts, dim=1).view(part.dtype)

    def close(self) -> None:
        """Implement Exchange.close; the other ranks notice it by the group's timeout."""
        self._failure = self._failure or "The exchange is closed."
        if self._native is not None:
            self._native.close()

    def native(self, kernels: Kernels) -> NativeExchange:
        """Implement KernelExchange.native."""
        if self._native is None:
            self._native = kernels.join_group(self._group.group_name, self.rank, self.num_ranks)
        return self._native


def new_memory() -> int:
    """Return a descriptor of memory for one SharedMemoryExchange of each rank, which other processes can inherit."""
    if sys.platform != "linux":
        with tempfile.TemporaryFile() as file:
            return os.dup(file.fileno())
    return os.memfd_create("caravan-exchange")


def exchange_error(native: NativeExchange, error: RuntimeError) -> RuntimeError:
    """Return an error of the kernels as ExchangeFailed if their exchange has failed, else as it is."""
    failure = native.failure()
    return ExchangeFailed(f"An exchange between ranks failed: {failure}.") if failure else error
