"""Claim memory from the operating system before it is written to.

Memory that was allocated is given page by page when it is first written, each cleared before: a prompt would wait.
"""

import ctypes
import mmap

from torch import Tensor

MADV_POPULATE_WRITE = 23  # Linux 5.14; madvise(2)


def prefault_pages(tensor: Tensor, num_bytes: int) -> bool:
    """Have the first bytes of a tensor in main memory, its content as it is; False where that cannot be asked for.

    Other threads may use the tensor meanwhile.
    """
    first = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    end = (tensor.data_ptr() + min(num_bytes, tensor.nbytes)) // mmap.PAGESIZE * mmap.PAGESIZE
    try:
        madvise = ctypes.CDLL(None).madvise
    except (AttributeError, TypeError, OSError):  # another operating system
        return False
    length = ctypes.c_size_t(max(0, end - first))
    return bool(madvise(ctypes.c_void_p(first), length, ctypes.c_int(MADV_POPULATE_WRITE)) == 0)
