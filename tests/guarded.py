"""Arrays that begin or end at a page that may not be touched, and what lies around them."""

import ctypes
import mmap

import numpy as np

PAGE = mmap.PAGESIZE
LIBC = ctypes.CDLL(None, use_errno=True)
NOTHING_ALLOWED = 0
# A NaN of either float, and a number out of range of any index.
UNTOUCHED = 0xFF


def draw_strides(rng, shape, itemsize, is_written):
    """Steps in bytes: axes in any order and direction, with gaps and, if only read, repeats."""
    order = list(range(len(shape)))
    if rng.random() < 0.3:
        order = (
            [1, 0, 3, 2] if len(shape) == 4 and rng.random() < 0.7 else list(rng.permutation(order))
        )
    is_gapped, is_reversed = rng.random(2) < 0.25
    repeats = not is_written and rng.random() < 0.2
    strides, step = [0] * len(shape), itemsize
    for axis in reversed(order):
        if is_gapped:
            step += int(rng.integers(3)) * itemsize
        strides[axis] = -step if is_reversed and rng.random() < 0.5 else step
        if repeats and rng.random() < 0.5:
            strides[axis] = 0
        step *= max(shape[axis], 1)
    return tuple(strides)


class Region:
    """Memory between two pages that may not be touched.

    Parameters
    ----------
    size : int
        The most bytes that an array in it may take.
    """

    def __init__(self, size):
        self.size = -(-size // PAGE) * PAGE
        self.mapped = mmap.mmap(-1, self.size + 2 * PAGE)
        self.memory = np.frombuffer(self.mapped, np.uint8)[PAGE:-PAGE]
        start = self.memory.ctypes.data
        for page in (start - PAGE, start + self.size):
            if LIBC.mprotect(ctypes.c_void_p(page), PAGE, NOTHING_ALLOWED):
                raise OSError(ctypes.get_errno(), "mprotect")

    def hold(self, array, strides, at_end):
        """Put an array there, and return it as it lies."""
        reaches = [(length - 1) * step for length, step in zip(array.shape, strides, strict=True)]
        below = -sum(min(reach, 0) for reach in reaches) if array.size else 0
        span = below + sum(max(reach, 0) for reach in reaches) + array.itemsize
        span = span if array.size else 0
        # A page more is looked at, to see what is written beside it.
        start, stop = (self.size - span - PAGE, self.size) if at_end else (0, span + PAGE)
        self.around = self.memory[max(start, 0) : stop]
        self.around[:] = UNTOUCHED
        first = (self.size - span if at_end else 0) + below
        self.held = np.ndarray(array.shape, array.dtype, self.memory, first, strides)
        self.held[...] = array
        self.remember()
        return self.held

    def remember(self):
        """What is there now is what it is to be compared with."""
        self.before = self.around.copy()

    def restore(self):
        self.around[:] = self.before

    def is_unchanged(self, but_elements=False):
        """Whether no byte is another than before, but those of the elements."""
        expected = self.before
        if but_elements and self.held.size:
            expected = self.before.copy()
            offset = self.held.__array_interface__["data"][0] - self.around.ctypes.data
            there = np.ndarray(
                self.held.shape, self.held.dtype, expected, offset, self.held.strides
            )
            there[...] = self.held
        return np.array_equal(self.around, expected)
