"""CpuAdapters: the adapters of CpuLlama, in the form in which the kernels read them."""

from collections.abc import Callable

import torch
import torch.nn.functional as F

from caravan.model.cpu.kernels import Kernels, NativeAdapters
from caravan.model.lora import LINEARS, AdapterPart

LANES = 16  # ranks and outputs are padded to a multiple of it


class CpuAdapters:
    """Adapters in bfloat16, with sums in float32."""

    def __init__(self, kernels: Kernels) -> None:
        self.native: NativeAdapters = kernels.make_adapters()

    def prepare(self, parts: list[AdapterPart]) -> Callable[[int], None]:
        """Return a function that puts an adapter into an empty slot; its tensors are made here."""
        prepared = []
        for part in parts:
            missing = -part.a.shape[0] % LANES  # ranks
            a = F.pad(part.a.T, (0, missing))  # [in, rank]
            b = F.pad(part.b.T, (0, -part.b.shape[0] % LANES, 0, missing))  # [rank, out]
            place = (part.layer, LINEARS.index(part.linear), part.first, part.b.shape[0], part.scale)
            prepared.append((*place, a.to(torch.bfloat16).contiguous(), b.to(torch.bfloat16).contiguous()))

        def put(slot: int) -> None:
            for arguments in prepared:
                self.native.add(slot, *arguments)

        return put

    def remove(self, slot: int) -> None:
        """Make a slot empty."""
        self.native.remove(slot)
