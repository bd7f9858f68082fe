"""Both ops triple after triple, as the examples stand: of small blocks a plan takes longer than the
products."""

import numpy as np
from numba.core.types import int64, void

from blocksparse_ops.kernels.numba.ahead import set_ahead
from blocksparse_ops.kernels.numba.arrays import load, store
from blocksparse_ops.kernels.numba.check import count_from_start
from blocksparse_ops.kernels.numba.choose import threads_for
from blocksparse_ops.kernels.numba.compile import Unit, kernel
from blocksparse_ops.kernels.numba.gemv import ARGUMENTS as GEMV_ARGUMENTS
from blocksparse_ops.kernels.numba.gemv_rows import add_gemv
from blocksparse_ops.kernels.numba.memory import allocate_tables, free_tables, take
from blocksparse_ops.kernels.numba.outer import ARGUMENTS as OUTER_ARGUMENTS
from blocksparse_ops.kernels.numba.outer_rows import add_outer
from blocksparse_ops.kernels.numba.panel import ceil_div, constant, lanes_of, size_of
from blocksparse_ops.kernels.numba.places import WORD_BITS
from blocksparse_ops.kernels.numba.records import address_of_record
from blocksparse_ops.kernels.numba.rows import DIRECT
from blocksparse_ops.kernels.numba.shapes import (
    ONE_INDEX,
    OVER_PADDED,
    OVER_WINDOWS,
    TOGETHER,
    TWO_INDICES,
    VECTORS,
    position_of,
    shapes,
)
from blocksparse_ops.kernels.numba.split import share_of
from blocksparse_ops.kernels.numba.sums import MOST_SUMS, most_chains, vectors_in_registers
from blocksparse_ops.kernels.numba.threads import Work

most_chains_of = constant(most_chains)
vectors_of = kernel(vectors_in_registers)

new_direct, direct_at = DIRECT.new, DIRECT.at


@kernel
def loops_of(p, lanes, columns, most_vectors):
    """The position in LOOPS for blocks of so many columns."""
    if p.is_padded:
        return OVER_PADDED
    if p.index:
        loops = ONE_INDEX + has_one_input(p) * len(VECTORS)
    elif has_one_input(p) and p.right.shape[1] == 1:
        loops = TWO_INDICES
    else:
        return OVER_WINDOWS
    for position in range(1, len(VECTORS)):
        if columns == VECTORS[position] << lanes and VECTORS[position] <= most_vectors:
            loops += position
    return loops


def gemv_of(position):
    """The function for one shape. What is enclosed is part of a key on the disk: a number."""

    def work_direct_gemv(direct, thread, scale):
        p = direct_at(direct, 0, scale)
        rows = share_of(p.right.shape[0] * p.right.shape[1], thread, p.threads)
        add_gemv(position, p, thread, rows.first, rows.last)

    return work_direct_gemv


def outer_of(position):
    def work_direct_outer(direct, thread, scale):
        p = direct_at(direct, 0, scale)
        blocks = share_of(p.blocks.shape[0] * p.blocks.shape[1], thread, p.threads)
        add_outer(position, p, thread, blocks.first, blocks.last)

    return work_direct_outer


@kernel
def power_up_to(most, size):
    """The exponent of the largest power of two that is neither above `most` nor above a size."""
    exponent = 0
    while 2 << exponent <= min(most, size):
        exponent += 1
    return exponent


@kernel
def set_direct(p, blocks, left, right, left_index, right_index, scale, most_threads):
    p.blocks, p.left, p.right, p.scale = blocks, left, right, scale
    p.is_padded = left_index.known.is_padded or right_index.known.is_padded
    inputs, outputs = left.shape[1], right.shape[1]
    p.words = ceil_div(inputs, WORD_BITS) if p.is_padded else 0
    elements = blocks.shape[2] * blocks.shape[3]
    p.threads = threads_for(left.shape[0] * inputs * outputs, elements, most_threads)


@kernel
def take_direct(p, memory):
    """All tables of a call."""
    batch = p.left.shape[0]
    p.input = take(memory, batch * p.left.shape[1])
    p.output = take(memory, batch * p.right.shape[1])
    p.initial = take(memory, lanes_of(p))
    p.places = take(memory, p.threads * p.words)


@kernel
def has_one_input(p):
    return p.left.shape[1] == 1


@kernel
def set_index(p):
    """Where output windows have one place, and blocks lie along one axis, the index along it."""
    p.index, p.index_step = 0, 0
    if p.is_padded or p.right.shape[1] != 1:
        return
    if p.blocks.shape[1] == 1:
        p.index, p.index_step = p.input, p.blocks.strides[0]
    elif p.blocks.shape[0] == 1 and has_one_input(p):
        p.index, p.index_step = p.output, p.blocks.strides[1]


@kernel
def set_indices(p, left_index, right_index):
    """Those of both sides, and all that follows from them."""
    p.input = count_from_start(left_index, p.blocks.shape[0], p.input)
    p.output = count_from_start(right_index, p.blocks.shape[1], p.output)
    set_index(p)
    set_ahead(p)


@kernel
def is_nothing(p):
    """Whether there is nothing to add."""
    triples = p.left.shape[0] * p.left.shape[1] * p.right.shape[1]
    return triples == 0 or p.blocks.shape[2] * p.blocks.shape[3] == 0


@kernel
def shape_of_gemv(p):
    """The position of the shape of a product in `shapes`."""
    _, _, depth, columns = p.blocks.shape
    _, _, row_step, column_step = p.blocks.strides
    size, lanes = size_of(p), lanes_of(p)
    chains = power_up_to(most_chains_of(p), depth)
    has_columns = row_step == size and p.left.strides[2] == size
    if p.index and columns == 1 and p.right.strides[0] == size and (has_columns or depth == 1):
        loops = TOGETHER + has_one_input(p)
        return position_of(1, chains, power_up_to(lanes, lanes), loops)
    by_columns = has_columns and (columns == 1 or column_step != size)
    most_lanes = 1
    # One by one where the output has gaps: its addresses would take the registers of all others.
    if p.right.strides[2] == size and by_columns:
        most_lanes = min(MOST_SUMS, lanes)
    elif p.right.strides[2] == size and column_step == size:
        most_lanes = lanes
    lanes = power_up_to(most_lanes, columns)
    most_vectors = vectors_of(1 << (lanes if by_columns else chains)) if lanes else 1
    loops = loops_of(p, lanes, columns, most_vectors)
    return position_of(np.int64(by_columns), chains, lanes, loops)


@kernel
def shape_of_outer(p):
    """The position of the shape of an outer product in `shapes`."""
    _, _, rows, columns = p.blocks.shape
    _, _, row_step, column_step = p.blocks.strides
    size, right_step = size_of(p), p.right.strides[2]
    by_columns = row_step == size and (columns == 1 or column_step != size)
    if by_columns:
        columns, column_step, right_step = rows, row_step, p.left.strides[2]
    is_contiguous = column_step == size and right_step == size
    lanes = power_up_to(lanes_of(p), columns) if is_contiguous else 0
    loops = loops_of(p, lanes, columns, MOST_SUMS if is_contiguous else 1)
    return position_of(np.int64(by_columns), 0, lanes, loops)


@kernel
def writes_all(h, W):
    """Whether each element of the output is a sum of some products."""
    return h.shape[1] * W.shape[2] * W.shape[3] != 0


def run_direct_gemv(out, W, h, inputIdx, outputIdx, scale, start, most_threads):
    """Add to `out`; all has been checked.

    It holds the initial values or, where each element is written, `start` is where the value is
    from which all start.
    """
    p = new_direct(scale)
    set_direct(p, W, h, out, inputIdx, outputIdx, scale, most_threads)
    if is_nothing(p):
        return
    array = allocate_tables(p, take_direct)
    if start == 0:
        p.initial = 0
    else:
        for q in range(lanes_of(p)):
            store(p.initial + q * size_of(p), load(start, scale))
    set_indices(p, inputIdx, outputIdx)
    work_gemv(scale, shape_of_gemv(p), address_of_record(p), p.threads)
    free_tables(p, take_direct, array)


def run_direct_outer(out, x, y, xIdx, yIdx, alpha, most_threads):
    """Add to `out`, which holds the initial values; all has been checked."""
    p = new_direct(alpha)
    set_direct(p, out, x, y, xIdx, yIdx, alpha, most_threads)
    if is_nothing(p):
        return
    array = allocate_tables(p, take_direct)
    set_indices(p, xIdx, yIdx)
    work_outer(alpha, shape_of_outer(p), address_of_record(p), p.threads)
    free_tables(p, take_direct, array)


work_gemv, work_outer = (
    Work([function_of(position) for position in range(len(shapes()))]).run
    for function_of in (gemv_of, outer_of)
)
RUN_DIRECT_GEMV = Unit(run_direct_gemv, lambda scalar: void(*GEMV_ARGUMENTS, scalar, int64, int64))
RUN_DIRECT_OUTER = Unit(run_direct_outer, lambda scalar: void(*OUTER_ARGUMENTS, scalar, int64))
