"""The tables of a call, in one piece of memory: to allocate each takes longer than a small product.

A table is the address of its first number. Numbers are words, of 64 bits, or, where there are many,
rows, of 32.
"""

import numpy as np
from numba.core.types import int64, void
from numba.extending import intrinsic

from blocksparse_ops.kernels.numba import TABLES_ARE_CHECKED
from blocksparse_ops.kernels.numba.arrays import address_of, keep_alive
from blocksparse_ops.kernels.numba.compile import kernel
from blocksparse_ops.kernels.numba.records import Record
from blocksparse_ops.kernels.numba.vector import FLAG, WORD, WORD_BYTES, Code, word


def reader(number_type):
    """The function number(table, position)."""

    @intrinsic
    def read(typing_context, table, position):
        def generate(context, builder, signature, arguments):
            address = address_in(builder, number_type, *arguments)
            number = Code(builder).load(address, number_type, number_type.width // 8)
            return number if number_type == WORD else builder.zext(number, WORD)

        return int64(int64, int64), generate

    return read


def writer(number_type):
    """The function that sets a number, set(table, position, number)."""

    @intrinsic
    def write(typing_context, table, position, number):
        def generate(context, builder, signature, arguments):
            *entry, number = arguments
            number = number if number_type == WORD else builder.trunc(number, number_type)
            address = address_in(builder, number_type, *entry)
            Code(builder).store(number, address, number_type.width // 8)
            return context.get_dummy_value()

        return void(int64, int64, int64), generate

    return write


def address_in(builder, number_type, table, position):
    return builder.add(table, builder.mul(position, word(number_type.width // 8)))


word_at, row_at = reader(WORD), reader(FLAG)
set_word, set_row = writer(WORD), writer(FLAG)

# Where the next table is to start, and what is done with the guard behind each: a word that nothing
# may change, only where tables are checked.
MEMORY = Record("Memory", "free guards")
new_memory = MEMORY.new
COUNTED, SET, VERIFIED = np.int64(0), np.int64(1), np.int64(2)
GUARD = np.int64(0x5AFE5AFE5AFE5AFE)


@kernel
def take(memory, words):
    """A table of so many words."""
    table = memory.free
    memory.free += words * WORD_BYTES
    if TABLES_ARE_CHECKED:
        take_guard(memory)
    return table


@kernel
def take_guard(memory):
    if memory.guards == SET:
        set_word(memory.free, 0, GUARD)
    elif memory.guards == VERIFIED and word_at(memory.free, 0) != GUARD:
        raise SystemError("a kernel has written behind one of its tables")
    memory.free += WORD_BYTES


@kernel
def take_rows(memory, rows):
    """A table of so many rows."""
    return take(memory, (rows + 1) // 2)


@kernel
def allocate_tables(record, take_tables):
    """The array that holds all tables that a call of take_tables(record, memory) takes.

    It is called twice: from address 0, which tells how much memory they take, and in this memory.
    """
    memory = new_memory(record)
    memory.free, memory.guards = 0, COUNTED
    take_tables(record, memory)
    array = np.empty(memory.free // WORD_BYTES, np.int64)
    memory.free, memory.guards = address_of(array), SET
    take_tables(record, memory)
    return array


@kernel
def free_tables(record, take_tables, array):
    """What follows the last use of tables."""
    if TABLES_ARE_CHECKED:
        memory = new_memory(record)
        memory.free, memory.guards = address_of(array), VERIFIED
        take_tables(record, memory)
    keep_alive(array)


@kernel
def fill_zeros(table, words):
    for position in range(words):
        set_word(table, position, 0)


@kernel
def locate_rows(array, rows):
    """Fill a table: where the rows of a (batch, window, size) array start, as n * window + v."""
    batch, window = array.shape[0], array.shape[1]
    for n in range(batch):
        for v in range(window):
            offset = n * array.strides[0] + v * array.strides[1]
            set_word(rows, n * window + v, array.data + offset)
