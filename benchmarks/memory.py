"""Huge pages for all arrays that are compared."""

import mmap

import numpy as np

LARGE = 4 * 2**20


def settled(array):
    """A copy of `array` in pages of its own, huge ones where the system has them.

    NumPy asks for huge pages too, but may reuse memory in small pages, where blocks cost more TLB
    misses: so what ran before would decide who looks fast.
    """
    if array.nbytes < LARGE:
        return array.copy()
    pages = mmap.mmap(-1, array.nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        pages.madvise(mmap.MADV_HUGEPAGE)
    copy = np.frombuffer(pages, array.dtype).reshape(array.shape)
    copy[:] = array
    return copy
