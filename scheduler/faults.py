"""Faults: which errors of a step are the fault of no request in it."""

import torch


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that the memory of a GPU is used up. torch's own is a RuntimeError."""
    return isinstance(error, torch.OutOfMemoryError)


def is_device_fault(error: BaseException) -> bool:
    """Return whether an error says that a GPU has failed: then every later call of the process fails, too.

    torch raises AcceleratorError for errors of CUDA itself; libraries above it raise RuntimeErrors with its words.
    """
    if is_out_of_memory(error):
        return False
    return isinstance(error, torch.AcceleratorError) or (isinstance(error, RuntimeError) and "CUDA error" in str(error))


def is_fatal(error: BaseException) -> bool:
    """Return whether a step must not be run again sequence by sequence after this error."""
    return isinstance(error, MemoryError) or is_out_of_memory(error) or is_device_fault(error)
