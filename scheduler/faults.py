"""Faults: which errors of a step are the fault of no request in it."""

import torch

from caravan.model.exchange import ExchangeFailed

_DEVICE_ERRORS = ("CUDA error", "HIP error", "Triton Error [")  # in messages


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that the memory of a GPU is used up.

    torch's allocator, CUDA, cuBLAS and Triton, which loads kernels and launches them, each have an error for it; all of
    them are RuntimeErrors. They leave the GPU usable.
    """
    text = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and ("out of memory" in text or "cublas_status_alloc_failed" in text)
    )


def is_device_fault(error: BaseException) -> bool:
    """Return whether an error says that a GPU has failed: then every later call of the process fails, too.

    torch raises AcceleratorError for errors of CUDA itself; libraries above it and Triton raise RuntimeErrors. An error
    of Triton's own classes is no fault of a request either, and comes again with the next step.
    """
    if is_out_of_memory(error):
        return False
    is_triton = type(error).__module__.partition(".")[0] == "triton"  # a kernel that cannot be compiled or launched
    return (
        is_triton
        or isinstance(error, torch.AcceleratorError)
        or (isinstance(error, RuntimeError) and any(words in str(error) for words in _DEVICE_ERRORS))
    )


def is_fatal(error: BaseException) -> bool:
    """Return whether a step must not be run again sequence by sequence after this error."""
    return isinstance(error, MemoryError | ExchangeFailed) or is_out_of_memory(error) or is_device_fault(error)
