"""A GPU that does not exist: tensors on cuda:0 have a shape and no numbers, and no kernel runs.

PyTorch's fake tensors (torch._subclasses.fake_tensor) fail where an operation would give a number, or a shape that
depends on numbers, to the host. Copies between host and device are kept in a list, and so are Triton's launches.
A PyTorch without CUDA cannot index a fake tensor on a GPU, nor copy to one; FakeGpu does both.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.overrides import TorchFunctionMode
from triton.runtime.jit import JITFunction

GPU = torch.device("cuda", 0)
aten = torch.ops.aten


class HostRead(Exception):
    """The host wants a number of the GPU, or a shape that depends on its numbers."""


HOST_READS = (HostRead, DataDependentOutputException, DynamicOutputShapeException)


@dataclass(frozen=True)
class Copy:
    """A copy between host and device. The host waits for it unless it is non_blocking and its memory pinned."""

    is_to_host: bool
    num_bytes: int
    waits: bool


@dataclass(frozen=True)
class Launch:
    """A launch of a Triton kernel."""

    name: str
    devices: frozenset[torch.device]  # of its tensors
    numbers: tuple[Any, ...]  # the arguments that are none
    variant: tuple[Any, ...] = ()  # what Triton compiles the kernel for; another one is compiled anew


@dataclass(frozen=True)
class Wait:
    """The host waits for what was recorded."""


class FakeGpu(TorchFunctionMode):
    """What happens between host and GPU while the mode is on. Tensors of the host are real."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[Copy | Launch | Wait] = []
        self._fakes = FakeTensorMode(allow_non_fake_inputs=True)
        self._pinned: list[Tensor] = []
        self._functions: dict[Any, Callable[..., Any]] = {
            Tensor.__getitem__: self._indexed,
            Tensor.__setitem__: self._assign,
            Tensor.copy_: self._copy,
            Tensor.to: self._moved,
            Tensor.cpu: lambda tensor: self._moved(tensor, "cpu"),
            torch.empty_like: self._empty_like,
        }

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in (Tensor.__int__, Tensor.__float__, Tensor.__index__, Tensor.numpy) and args[0].is_cuda:
            raise HostRead
        if func in self._functions:
            return self._functions[func](*args, **kwargs)
        is_pinned = kwargs.pop("pin_memory", False)
        device = kwargs.get("device")
        if device is not None and torch.device(device).type == "cuda":
            if func is torch.tensor:
                del kwargs["device"]
                return self._moved(torch.tensor(*args, **kwargs), device)
            with self._fakes:
                return func(*args, **kwargs)
        result = func(*args, **kwargs)
        if is_pinned:
            self._pinned.append(result)
        return result

    def take(self) -> list[Copy | Launch | Wait]:
        """Return the events since the last call."""
        events, self.events = self.events, []
        return events

    @contextmanager
    def on(self) -> Iterator[None]:
        """Let tensors on cuda:0 be fake, Triton's launches be recorded, and events of CUDA be ours."""

        def run(kernel: Any, *arguments: Any, **options: Any) -> None:
            given = (*arguments, *options.values())
            devices = frozenset(one.device for one in given if isinstance(one, Tensor))
            numbers = tuple(one for one in given if not isinstance(one, Tensor))
            self.events.append(Launch(kernel.__name__, devices, numbers, _variant(kernel, arguments, options)))

        event = mock.patch("torch.cuda.Event", partial(_Event, self))
        memory = SimpleNamespace(shared_memory_per_block=49_152, shared_memory_per_block_optin=232_448)  # of an H200
        found = mock.patch("torch.cuda.get_device_properties", return_value=memory)
        with mock.patch.object(JITFunction, "run", run), event, found, self:
            yield

    def _indexed(self, tensor: Tensor, index: Any) -> Tensor:
        if not tensor.is_cuda:
            return tensor[index]
        view, tensors = _view(tensor, index)
        return view if tensors is None else aten.index.Tensor(view, tensors)

    def _assign(self, tensor: Tensor, index: Any, value: Any) -> None:
        if not tensor.is_cuda:
            tensor[index] = value
            return
        view, tensors = _view(tensor, index)
        if tensors is not None:
            aten.index_put_(view, tensors, value)
        elif isinstance(value, Tensor):
            self._copy(view, value)
        else:
            view.fill_(value)

    def _copy(self, target: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
        """Note a copy between devices. What the host gets is zeros."""
        source.expand(target.shape)  # raises if it does not fit
        if target.is_cuda != source.is_cuda:
            host = source if target.is_cuda else target
            waits = not (non_blocking and self._is_pinned(host))
            self.events.append(Copy(source.is_cuda, math.prod(target.shape) * source.itemsize, waits))
            return target if target.is_cuda else target.zero_()
        return target if target.is_cuda else target.copy_(source)

    def _moved(self, tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        device, dtype, non_blocking, _ = torch._C._nn._parse_to(*args, **kwargs)
        if device is None or device.type == tensor.device.type:
            return tensor.to(*args, **kwargs)
        with self._fakes if device.type == "cuda" else nullcontext():
            target = torch.zeros(tensor.shape, dtype=dtype or tensor.dtype, device=device)
        return self._copy(target, tensor, non_blocking)

    def _empty_like(self, tensor: Tensor, **options: Any) -> Tensor:
        options = {"dtype": tensor.dtype, "device": tensor.device} | options
        return self.__torch_function__(torch.empty, (), (tensor.shape,), options)

    def _is_pinned(self, tensor: Tensor) -> bool:
        address = tensor.untyped_storage().data_ptr()
        return any(address == one.untyped_storage().data_ptr() for one in self._pinned)


def _variant(kernel: Any, arguments: tuple[Any, ...], options: dict[str, Any]) -> tuple[Any, ...]:
    """Return types, alignments of addresses to 16 bytes, numbers as Triton specializes on them, and constants."""
    named = dict(zip(kernel.arg_names, arguments, strict=False)) | options
    parts: dict[str, Any] = {"kernel": kernel.__name__} | named
    parts = {name: value for name, value in parts.items() if name not in ("grid", "warmup")}
    for param in kernel.params:
        value = named[param.name]
        if isinstance(value, Tensor):
            parts[param.name] = value.dtype, value.storage_offset() * value.itemsize % 16 == 0
        elif isinstance(value, float) and not param.is_constexpr:
            parts[param.name] = "float"
        elif isinstance(value, int) and not param.is_constexpr:
            is_plain = param.do_not_specialize
            parts[param.name] = "int" if is_plain else 1 if value == 1 else "int" if value % 16 else "16"
    return tuple(sorted(parts.items()))


class _Event:
    """An event of CUDA."""

    def __init__(self, gpu: FakeGpu) -> None:
        self._gpu = gpu

    def record(self) -> None:
        """Do nothing: work is done when it is launched."""

    def synchronize(self) -> None:
        self._gpu.events.append(Wait())


def _view(tensor: Tensor, index: Any) -> tuple[Tensor, list[Tensor | None] | None]:
    """Return the view of a tensor that integers, slices and None select, and the tensors that index it, if any."""
    tensors: list[Tensor | None] = []
    for part in index if isinstance(index, tuple) else (index,):
        if isinstance(part, Tensor):
            if part.dtype == torch.bool:
                raise HostRead
            tensors.append(part)
        elif part is None:
            tensor = aten.unsqueeze(tensor, len(tensors))
            tensors.append(None)
        elif isinstance(part, slice):
            assert part.step is None
            end = tensor.shape[len(tensors)] if part.stop is None else part.stop
            tensor = aten.slice(tensor, len(tensors), part.start or 0, end)
            tensors.append(None)
        else:
            tensor = aten.select(tensor, len(tensors), int(part))
    return tensor, tensors if any(one is not None for one in tensors) else None
