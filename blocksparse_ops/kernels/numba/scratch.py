"""The memory that a thread works in: one panel, and the tables that tiles read."""

from collections import namedtuple

from blocksparse_ops.kernels.numba.compile import kernel
from blocksparse_ops.kernels.numba.panel import lanes_of, scratch_elements, size_of
from blocksparse_ops.kernels.numba.tile import MOST_ADDRESSES, TASK_BYTES

# Addresses: of a panel, of tables for rows of the left operand and of the output, of a task, and of
# what else a kernel keeps.
Scratch = namedtuple("Scratch", "panel left to task more")

# The machine fetches ahead beyond a thread's part: there must not be another thread's. To begin on
# a page makes a small product slower, and one thread needs not.
LINE, PAGE = 128, 4096
TABLE_BYTES = 8 * MOST_ADDRESSES
TABLES_BYTES = 2 * TABLE_BYTES + TASK_BYTES


@kernel
def panel_bytes(scale):
    return scratch_elements(lanes_of(scale)) * size_of(scale)


@kernel
def unit_of(threads):
    return LINE if threads == 1 else PAGE


@kernel
def bytes_of_thread(threads, more, scale):
    needed = panel_bytes(scale) + TABLES_BYTES + more
    return (needed + 2 * unit_of(threads) - 1) // unit_of(threads) * unit_of(threads)


@kernel
def scratch_words(threads, more, scale):
    """The memory for so many threads, with so many bytes more for each."""
    return (unit_of(threads) + threads * bytes_of_thread(threads, more, scale)) // 8


@kernel
def scratch_of(table, thread, threads, more, scale):
    """The part of one thread of a table of scratch_words."""
    first = (table + unit_of(threads) - 1) // unit_of(threads) * unit_of(threads)
    panel = first + thread * bytes_of_thread(threads, more, scale)
    left = panel + panel_bytes(scale)
    to = left + TABLE_BYTES
    return Scratch(panel, left, to, to + TABLE_BYTES, left + TABLES_BYTES)
