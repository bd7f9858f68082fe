"""The scratch of a thread: a packed panel, and the tables that tiles read."""

from collections import namedtuple

from blocksparse_ops.kernels.numba.compile import kernel
from blocksparse_ops.kernels.numba.memory import COUNTED, new_memory, take
from blocksparse_ops.kernels.numba.panel import packed_bytes
from blocksparse_ops.kernels.numba.tile import FACTOR, MOST_ADDRESSES, TASK
from blocksparse_ops.kernels.numba.vector import WORD_BYTES

# Tables of addresses for rows of the left operand and of the output, a task, a table of factors.
Scratch = namedtuple("Scratch", "packed left to task factors more")

TASK_WORDS, FACTOR_WORDS = TASK.words, FACTOR.words
task_at, factor_at = TASK.at, FACTOR.at

# The hardware prefetcher runs beyond a thread's scratch: there must not be another thread's. To
# begin on a page makes a small product slower, and one thread needs not.
LINE, PAGE = 128, 4096


@kernel
def take_scratch(memory, factors, more, like):
    """A scratch with so many factors, and so many bytes more."""
    packed = take(memory, packed_bytes(like) // WORD_BYTES)
    left, to = take(memory, MOST_ADDRESSES), take(memory, MOST_ADDRESSES)
    task = task_at(take(memory, TASK_WORDS), 0, like)
    table = take(memory, factors * FACTOR_WORDS)
    return Scratch(packed, left, to, task, table, take(memory, more // WORD_BYTES))


@kernel
def align(number, unit):
    return (number + unit - 1) // unit * unit


@kernel
def thread_bytes(threads, factors, more, like):
    """From one thread's scratch to the next one's."""
    memory = new_memory(like)
    memory.free, memory.guards = 0, COUNTED
    take_scratch(memory, factors, more, like)
    unit = LINE if threads == 1 else PAGE
    return align(memory.free + unit, unit)


@kernel
def take_scratches(memory, threads, factors, more, like):
    """A table for so many threads."""
    unit = LINE if threads == 1 else PAGE
    words = (unit + threads * thread_bytes(threads, factors, more, like)) // WORD_BYTES
    return take(memory, words)


@kernel
def scratch_of(table, thread, threads, factors, more, like):
    """The scratch of one thread of a table of take_scratches."""
    memory = new_memory(like)
    memory.free, memory.guards = align(table, LINE if threads == 1 else PAGE), COUNTED
    memory.free += thread * thread_bytes(threads, factors, more, like)
    return take_scratch(memory, factors, more, like)
