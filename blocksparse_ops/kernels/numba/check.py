"""What is wrong with the arguments, as a plain record, and the indices counted from the start."""

import numpy as np
from numba.core.errors import NumbaTypeError
from numba.core.types import Integer
from numba.extending import overload

from blocksparse_ops.kernels.numba.compile import kernel
from blocksparse_ops.signature import (
    LARGEST,
    MOST_ROWS,
    OVERFLOW,
    SHAPE,
    SIGNED_INDEX,
    SOUND,
    UNSIGNED_INDEX,
)

# A record is (kind, which, first, second, value, size): see Signature.raise_fault.
FINE = (SOUND, 0, 0, 0, 0, 0)

# Where the indices stand among the arguments of either op.
INPUT_INDEX, OUTPUT_INDEX = 3, 4


@kernel
def check_sizes(sizes, agreements):
    for which in range(len(agreements)):
        one, other = sizes[agreements[which][0]], sizes[agreements[which][1]]
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


def index_kind(value):
    """SIGNED_INDEX or UNSIGNED_INDEX, by the type of `value`."""
    raise AssertionError("only for compiled code")


@overload(index_kind)
def overload_index_kind(value):
    if not isinstance(value, Integer):
        raise NumbaTypeError("a block index is an integer")
    kind = SIGNED_INDEX if value.signed else UNSIGNED_INDEX
    return lambda value: kind


@kernel
def from_start(value, blocks):
    """The block that an index names, counted from the start, or -1 if it is out of range."""
    block = np.int64(value)
    if index_kind(value) == SIGNED_INDEX and -blocks <= block < 0:
        return block + blocks
    # An unsigned value of 2**63 or more is negative here, and out of range.
    return block if 0 <= block < blocks else -1


@kernel
def check_index(index, argument, blocks):
    for first in range(index.shape[0]):
        for second in range(index.shape[1]):
            value = index[first, second]
            if from_start(value, blocks) < 0:
                return (index_kind(value), argument, first, second, np.int64(value), blocks)
    return FINE


@kernel
def check(sizes, agreements, triples, inputIdx, iBlocks, outputIdx, oBlocks):
    """Return a record of what is wrong with a call of either op.

    Nothing is allocated: Numba would not free it when the record is raised.
    """
    fault = check_sizes(sizes, agreements)
    if fault[0] == SOUND:
        fault = check_triples(triples[0], triples[1], triples[2])
    if fault[0] == SOUND:
        fault = check_index(inputIdx, INPUT_INDEX, iBlocks)
    if fault[0] == SOUND:
        fault = check_index(outputIdx, OUTPUT_INDEX, oBlocks)
    return fault


@kernel
def flat_from_start(index, blocks):
    """The checked indices of one argument, counted from the start, row after row."""
    found = np.empty(index.size, np.int64)
    for position, value in enumerate(index.flat):
        found[position] = from_start(value, blocks)
    return found
