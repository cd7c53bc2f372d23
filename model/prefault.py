"""Prefault memory: have the operating system provide its pages before they are written; and give up mapped ones.

Otherwise each page is cleared and provided when it is first written, which delays prompts.
"""

import ctypes
import mmap

from torch import Tensor

MADV_POPULATE_WRITE = 23  # Linux 5.14; madvise(2)


def prefault_pages(tensor: Tensor, num_bytes: int) -> bool:
    """Bring the first num_bytes of a tensor into main memory, its content unchanged; False if the system cannot.

    Other threads may use the tensor meanwhile.
    """
    return _advise(tensor, num_bytes, MADV_POPULATE_WRITE)


def drop_pages(tensor: Tensor) -> None:
    """Give up the pages of a tensor that is mapped read-only from a file; they are read again when they are used."""
    _advise(tensor, tensor.nbytes, mmap.MADV_DONTNEED)


def _advise(tensor: Tensor, num_bytes: int, advice: int) -> bool:
    """Give advice on the whole pages among the first num_bytes of a tensor; False if the system does not take it."""
    first = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    end = (tensor.data_ptr() + min(num_bytes, tensor.nbytes)) // mmap.PAGESIZE * mmap.PAGESIZE
    try:
        madvise = ctypes.CDLL(None).madvise
    except (AttributeError, TypeError, OSError):  # another operating system
        return False
    length = ctypes.c_size_t(max(0, end - first))
    return bool(madvise(ctypes.c_void_p(first), length, ctypes.c_int(advice)) == 0)
