"""The tables of a call, in one piece of memory: to allocate each takes longer than a small product.

A table is the address of its first number. Numbers are words, of 64 bits, or, where there are many,
rows, of 32.
"""

import numpy as np
from numba.core.types import int64, void
from numba.extending import intrinsic

from blocksparse_ops.kernels.numba.arrays import address_of, store
from blocksparse_ops.kernels.numba.compile import kernel
from blocksparse_ops.kernels.numba.vector import FLAG, WORD, Code, word

WORD_BYTES = 8

# A memory begins with the address of what is still free.
HEAD_BYTES = 8


def reader(kind):
    """The function number(table, position)."""

    @intrinsic
    def read(typing_context, table, position):
        def generate(context, builder, signature, arguments):
            number = Code(builder).load(place_of(builder, kind, *arguments), kind, kind.width // 8)
            return number if kind == WORD else builder.zext(number, WORD)

        return int64(int64, int64), generate

    return read


def writer(kind):
    """The function that sets a number, set(table, position, number)."""

    @intrinsic
    def write(typing_context, table, position, number):
        def generate(context, builder, signature, arguments):
            *place, number = arguments
            number = number if kind == WORD else builder.trunc(number, kind)
            Code(builder).store(number, place_of(builder, kind, *place), kind.width // 8)
            return context.get_dummy_value()

        return void(int64, int64, int64), generate

    return write


def place_of(builder, kind, table, position):
    return builder.add(table, builder.mul(position, word(kind.width // 8)))


word_at, row_at = reader(WORD), reader(FLAG)
set_word, set_row = writer(WORD), writer(FLAG)


@kernel
def new_memory(words):
    """An array of so many words, to be used from its address on while it is kept alive."""
    return np.empty(words + 1, np.int64)


@kernel
def open_memory(array):
    """The address of a memory of which all is free."""
    memory = address_of(array)
    set_word(memory, 0, memory + HEAD_BYTES)
    return memory


@kernel
def take(memory, words):
    """A table of so many words."""
    table = word_at(memory, 0)
    set_word(memory, 0, table + words * WORD_BYTES)
    return table


def record_of(record_type):
    """How a record is kept in memory, for a function from a Numba float to its type.

    Returns two functions: words(scale), how many words it takes, and read(address, scale).
    """

    @intrinsic
    def words(typing_context, scale):
        def generate(context, builder, signature, arguments):
            size = context.get_abi_sizeof(context.get_value_type(record_type(scale)))
            return word(-(-size // WORD_BYTES))

        return int64(scale), generate

    @intrinsic
    def read(typing_context, address, scale):
        record = record_type(scale)

        def generate(context, builder, signature, arguments):
            return Code(builder).load(arguments[0], context.get_value_type(record), align=1)

        return record(address, scale), generate

    return words, read


@kernel
def keep(memory, record, words):
    """The address of a copy of a record."""
    address = take(memory, words)
    store(address, record)
    return address


@kernel
def take_zeros(memory, words):
    table = take(memory, words)
    for position in range(words):
        set_word(table, position, 0)
    return table


@kernel
def words_of_rows(rows):
    """The words that so many rows take."""
    return (rows + 1) // 2


@kernel
def row_addresses(array, memory):
    """Where the rows of a (batch, window, size) array start: example * window + position."""
    batch, window = array.shape[0], array.shape[1]
    rows = take(memory, batch * window)
    for example in range(batch):
        for position in range(window):
            offset = example * array.strides[0] + position * array.strides[1]
            set_word(rows, example * window + position, array.data + offset)
    return rows
