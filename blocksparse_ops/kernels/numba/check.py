"""What is wrong with the arguments, as a plain record, and the indices counted from the start."""

import numpy as np
from numba import objmode
from numba.core.types import UniTuple, int64, void

from blocksparse_ops.kernels.numba.arrays import load
from blocksparse_ops.kernels.numba.compile import Unit, kernel
from blocksparse_ops.kernels.numba.memory import set_word
from blocksparse_ops.signature import (
    LARGEST,
    MOST_ROWS,
    NO_FAULT,
    OVERFLOW,
    SHAPE,
    SIGNATURES,
    SIGNED_INDEX,
    UNSIGNED_INDEX,
    raise_fault,
)

# A record is (fault, which, first, second, value, size): see Signature.raise_fault.
FINE = (NO_FAULT, 0, 0, 0, 0, 0)

FAULT = UniTuple(int64, len(FINE))

# Where the indices stand among the arguments of either op. Not literals, for each of which Numba
# would compile once more what it is handed to.
INPUT_INDEX, OUTPUT_INDEX = np.int64(3), np.int64(4)


@kernel
def check_sizes(sizes, equal_sizes):
    for which in range(len(equal_sizes)):
        one, other = sizes[equal_sizes[which][0]], sizes[equal_sizes[which][1]]
        if one != other:
            return (SHAPE, which, one, other, 0, 0)
    return FINE


@kernel
def check_triples(batch, inputs, outputs):
    # A zero anywhere makes the product zero, however large the others.
    if batch == 0 or inputs == 0 or outputs == 0:
        return FINE
    if batch > MOST_ROWS // max(inputs, outputs) or batch * inputs > LARGEST // outputs:
        return (OVERFLOW, 0, 0, 0, 0, 0)
    return FINE


@kernel
def index_value(index, first, second):
    """The 64 bits of one value."""
    address = index.data + first * index.strides[0] + second * index.strides[1]
    if index.itemsize == 8:
        return load(address, np.int64(0))
    if index.itemsize == 4:
        value = load(address, np.int32(0))
        return np.int64(value) if index.is_signed else np.int64(np.uint32(value))
    if index.itemsize == 2:
        value = load(address, np.int16(0))
        return np.int64(value) if index.is_signed else np.int64(np.uint16(value))
    value = load(address, np.int8(0))
    return np.int64(value) if index.is_signed else np.int64(np.uint8(value))


@kernel
def from_start(value, is_signed, blocks):
    """The block that an index names, counted from the start, or -1 if it is out of range."""
    if is_signed and -blocks <= value < 0:
        return value + blocks
    # An unsigned value of 2**63 or more is negative here, and out of range.
    return value if 0 <= value < blocks else -1


@kernel
def check_index(index, argument, blocks):
    for first in range(index.shape[0]):
        for second in range(index.shape[1]):
            value = index_value(index, first, second)
            if from_start(value, index.is_signed, blocks) < 0:
                fault = SIGNED_INDEX if index.is_signed else UNSIGNED_INDEX
                return (fault, argument, first, second, value, blocks)
    return FINE


@kernel
def check(sizes, equal_sizes, triples, inputIdx, iBlocks, outputIdx, oBlocks):
    """Return a record of what is wrong with a call of either op.

    Nothing is allocated: Numba would not free it when the record is raised.
    """
    fault = check_sizes(sizes, equal_sizes)
    if fault[0] == NO_FAULT:
        fault = check_triples(triples[0], triples[1], triples[2])
    if fault[0] == NO_FAULT:
        fault = check_index(inputIdx, INPUT_INDEX, iBlocks)
    if fault[0] == NO_FAULT:
        fault = check_index(outputIdx, OUTPUT_INDEX, oBlocks)
    return fault


@kernel
def count_from_start(index, blocks, found):
    """Fill a table: the checked indices of one argument, counted from the start, by example."""
    batch, window = index.shape
    for n in range(batch):
        for position in range(window):
            value = index_value(index, n, position)
            block = value + blocks if value < 0 else value
            set_word(found, n * window + position, block)


OPS = tuple(SIGNATURES)


def fail(op, fault):
    """Raise what a record says of a call of the op of this number."""
    with objmode():
        raise_fault(OPS[op], fault)


FAIL = Unit(fail, lambda _: void(int64, FAULT))
ready_fail, call_fail = FAIL.ready, FAIL.call
