"""What is wrong with the arguments, as a plain record, and the indices counted from the start."""

from collections import namedtuple

import numpy as np
from llvmlite import ir
from numba import objmode
from numba.core.types import NamedUniTuple, UniTuple, boolean, int64, void
from numba.extending import intrinsic

from blocksparse_ops.kernels.numba.arrays import INDEX_ARRAY, IndexArray, Known, is_contiguous, load
from blocksparse_ops.kernels.numba.compile import Unit, kernel
from blocksparse_ops.kernels.numba.memory import set_word
from blocksparse_ops.kernels.numba.vector import WORD, WORD_BYTES, Code, word
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

# Stands for an index that names no block, where blocks are counted from the start.
NO_BLOCK = np.int64(-1)

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
def is_padding(value, known):
    """Whether an index, given by its 64 bits, names no block."""
    return known.is_padded and value == known.padding


@kernel
def from_start(value, is_signed, blocks):
    """The block that an index names, counted from the start, or -1 if it is out of range."""
    if is_signed and -blocks <= value < 0:
        return value + blocks
    # An unsigned value of 2**63 or more is negative here, and out of range.
    return value if 0 <= value < blocks else -1


# The functions that go over contiguous values in vectors: pass(start, count, ...). Each returns
# whether all are in range; if it counts, it writes the blocks that they name, counted from the
# start, to a table; and if they may be padded, padding is in range, and becomes NO_BLOCK.
CHECKS, COUNTS, IF_PADDED = np.int64(0), np.int64(1), np.int64(2)

NO_TABLE = np.int64(0)


@intrinsic(prefer_literal=True)
def all_in_range(typing_context, which, start, count, itemsize, is_signed, padding, blocks, table):
    stores, padded = (bool(which.literal_value & bit) for bit in (COUNTS, IF_PADDED))

    def generate(context, builder, signature, values):
        _, start, count, itemsize, *others = values
        result = builder.alloca(ir.IntType(1))
        code, done = Code(builder), builder.append_basic_block()
        switch = builder.switch(itemsize, done)
        for size in (1, 2, 4, 8):
            case = builder.append_basic_block()
            switch.add_case(word(size), case)
            builder.position_at_end(case)
            found = values_in_range(code, size, stores, padded, start, count, *others)
            builder.store(found, result)
            builder.branch(done)
        builder.position_at_end(done)
        return builder.load(result)

    return boolean(which, *PASS_SIGNATURE.args), generate


def index_pass(which):
    """One of them. What is enclosed is part of a key on the disk: a number."""

    def pass_over_values(start, count, itemsize, is_signed, padding, blocks, table):
        return all_in_range(which, start, count, itemsize, is_signed, padding, blocks, table)

    return pass_over_values


PASS_SIGNATURE = boolean(int64, int64, int64, boolean, int64, int64, int64)


def values_in_range(code, size, stores, padded, start, count, is_signed, padding, blocks, table):
    """The code of a pass over values of so many bytes."""
    builder = code.builder
    wrap = builder.select(is_signed, blocks, word(0))

    def check(lanes, k, found):
        words = ir.VectorType(WORD, lanes)
        values = ir.VectorType(ir.IntType(8 * size), lanes)
        value = code.load(code.offset(start, k, word(size)), values, align=size)
        if size < WORD_BYTES:
            value = builder.select(
                is_signed, builder.sext(value, words), builder.zext(value, words)
            )
        is_padding = builder.icmp_signed("==", value, code.splat(padding, words))
        # An unsigned value of 2**63 or more is negative here, and out of range.
        is_negative = builder.icmp_signed("<", value, ir.Constant(words, None))
        from_end = builder.add(value, code.splat(wrap, words))
        value = builder.select(is_negative, from_end, value)
        is_right = builder.icmp_unsigned("<", value, code.splat(blocks, words))
        if padded:
            is_right = builder.or_(is_right, is_padding)
            value = builder.select(is_padding, ir.Constant(words, [int(NO_BLOCK)] * lanes), value)
        found = builder.and_(found, is_right)
        if stores:
            code.store(value, code.offset(table, k, word(WORD_BYTES)), align=WORD_BYTES)
        return [found]

    def check_in_vectors(first, lanes, all_found):
        start = [ir.Constant(ir.VectorType(ir.IntType(1), lanes), [1] * lanes)]
        end = builder.sub(count, word(lanes - 1))
        k, (found,) = code.for_loop(
            first, end, word(lanes), start, lambda k, found: check(lanes, k, *found)
        )
        for lane in range(lanes):
            all_found = builder.and_(all_found, builder.extract_element(found, word(lane)))
        return k, all_found

    k, found = check_in_vectors(word(0), PASS_LANES, ir.Constant(ir.IntType(1), 1))
    return check_in_vectors(k, 1, found)[1]


# Values that are looked at together.
PASS_LANES = 8

# By themselves: in each caller they would take seconds to compile.
PASS = Unit([index_pass(which) for which in range(4)], lambda _: PASS_SIGNATURE)
ready_pass, call_pass = PASS.ready, PASS.call


@kernel
def is_known(index, blocks):
    """Whether two numbers are enough to know that all of a constant's values are in range."""
    return index.known.least >= 0 and index.known.greatest < blocks


def pass_over(index, blocks, table, which):
    """Whether all values of an index, of which each row may be anywhere, are in range."""
    batch, window = index.shape
    is_whole = is_contiguous(index, index.itemsize)
    if not is_whole and (window == 1 or index.strides[1] != index.itemsize):
        return go_over(index, blocks, table, which == COUNTS)
    if index.known.is_padded:
        which += IF_PADDED
    ready_pass(0, which)
    about = index.itemsize, index.is_signed, index.known.padding, blocks
    rows, length = (1, batch * window) if is_whole else (batch, window)
    found = True
    for n in range(rows):
        start = index.data + n * index.strides[0]
        found &= call_pass(0, which, (start, length, *about, table))
        table += length * WORD_BYTES
    return found


@kernel
def go_over(index, blocks, table, counts):
    """pass_over of values that lie apart: to call for each of them takes longer."""
    found = True
    for n in range(index.shape[0]):
        for k in range(index.shape[1]):
            value = index_value(index, n, k)
            block = from_start(value, index.is_signed, blocks)
            if is_padding(value, index.known):
                block = NO_BLOCK
            else:
                found &= block >= 0
            if counts:
                set_word(table, n * index.shape[1] + k, block)
    return found


# By itself, as CHECK_VALUES: calls with 64-bit indices in range and not negative need neither.
PASS_OVER = Unit(pass_over, lambda _: boolean(INDEX_ARRAY, int64, int64, int64))
ready_pass_over, call_pass_over = PASS_OVER.ready, PASS_OVER.call


@kernel
def look_over(index, blocks):
    """An index, of which it is known, if that is so, that all values name a block from the start.

    Then one pass over it is enough, for whatever is to be checked and counted.
    """
    known = index.known
    is_words = index.itemsize == WORD_BYTES and is_contiguous(index, index.itemsize)
    if not is_words or known.is_padded or is_known(index, blocks):
        return index
    ready_pass(0, CHECKS)
    # As if it were unsigned: a negative value is out of range then.
    about = WORD_BYTES, False, known.padding, blocks, NO_TABLE
    if not call_pass(0, CHECKS, (index.data, index.shape[0] * index.shape[1], *about)):
        return index
    known = Known(0, blocks - 1, known.is_padded, known.padding)
    data, shape, strides, itemsize, is_signed, _ = index
    return IndexArray(data, shape, strides, itemsize, is_signed, known)


@kernel
def looked_over(blocks, first, second):
    """The indices on both sides of an array of blocks, after `look_over`."""
    return look_over(first, blocks.shape[0]), look_over(second, blocks.shape[1])


def check_values(index, argument, blocks):
    """Return a record of the first value that is out of range, if one is."""
    ready_pass_over(0, 0)
    if not call_pass_over(0, 0, (index, blocks, NO_TABLE, CHECKS)):
        for first in range(index.shape[0]):
            for second in range(index.shape[1]):
                value = index_value(index, first, second)
                if is_padding(value, index.known):
                    continue
                if from_start(value, index.is_signed, blocks) < 0:
                    fault = SIGNED_INDEX if index.is_signed else UNSIGNED_INDEX
                    return (fault, argument, first, second, value, blocks)
    return FINE


CHECK_VALUES = Unit(check_values, lambda _: FAULT(INDEX_ARRAY, int64, int64))
ready_check_values, call_check_values = CHECK_VALUES.ready, CHECK_VALUES.call


@kernel
def check_index(index, argument, blocks):
    if is_known(index, blocks):
        return FINE
    ready_check_values(0, 0)
    return call_check_values(0, 0, (index, argument, blocks))


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
def count_from_start(index, blocks, table):
    """The checked indices of one argument, counted from the start or NO_BLOCK, by example.

    It is their own memory, if they are that already, or else this table, filled.
    """
    is_counted = not index.known.is_padded or index.known.padding == NO_BLOCK
    is_words = index.itemsize == WORD_BYTES and is_contiguous(index, index.itemsize)
    if is_known(index, blocks) and is_counted and is_words:
        return index.data
    ready_pass_over(0, 0)
    call_pass_over(0, 0, (index, blocks, table, COUNTS))
    return table


OPS = tuple(SIGNATURES)


def fail(op, fault, padding):
    """Raise what a record says of a call of the op of this number.

    `padding` is whether some index names no block, and its 64 bits.
    """
    with objmode():
        raise_fault(OPS[op], fault, padding)


# A call, besides its arrays: the number of its op in OPS, whether some value of an index names no
# block, the 64 bits of that value, and whether several threads may be used.
Call = namedtuple("Call", "op is_padded padding is_threaded")
CALL = NamedUniTuple(int64, 4, Call)

FAIL = Unit(fail, lambda _: void(int64, FAULT, UniTuple(int64, 2)))
ready_fail, call_fail = FAIL.ready, FAIL.call


@kernel
def raise_fault_of(fault, call):
    if fault[0] != NO_FAULT:
        ready_fail(0, 0)
        call_fail(0, 0, (call.op, fault, (call.is_padded, call.padding)))
