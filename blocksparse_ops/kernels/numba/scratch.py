"""The memory that a thread works in: one panel, and the tables that tiles read."""

from collections import namedtuple

import numpy as np

from blocksparse_ops.kernels.numba.compile import kernel
from blocksparse_ops.kernels.numba.panel import lanes_of, scratch_elements, size_of
from blocksparse_ops.kernels.numba.tile import MOST_ADDRESSES

# Addresses: of a panel, of the rows of the left operand and of the output, and of what else a
# kernel keeps.
Scratch = namedtuple("Scratch", "panel left to more")

LINE = 128  # threads share no line
TABLE_BYTES = 8 * MOST_ADDRESSES


@kernel
def panel_bytes(scale):
    return scratch_elements(lanes_of(scale)) * size_of(scale)


@kernel
def bytes_of_thread(more, scale):
    return (panel_bytes(scale) + 2 * TABLE_BYTES + more + LINE - 1) // LINE * LINE


@kernel
def scratch_memory(threads, more, scale):
    """Memory for so many threads, with so many bytes more for each."""
    return np.empty(LINE + threads * bytes_of_thread(more, scale), np.uint8)


@kernel
def scratch_of(memory, thread, more, scale):
    """The part of one thread of the memory at an address."""
    panel = (memory + LINE - 1) // LINE * LINE + thread * bytes_of_thread(more, scale)
    left = panel + panel_bytes(scale)
    return Scratch(panel, left, left + TABLE_BYTES, left + 2 * TABLE_BYTES)
