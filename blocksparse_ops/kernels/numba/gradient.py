"""The blocks that an outer product on zeros adds to, and what it adds to each."""

import numpy as np
from numba.core.types import Array as ArrayOfNumba
from numba.core.types import Tuple, int64

from blocksparse_ops.kernels.numba.arrays import Array, address_of, new_zeros, view
from blocksparse_ops.kernels.numba.check import CALL, looked_over
from blocksparse_ops.kernels.numba.compile import Unit, kernel
from blocksparse_ops.kernels.numba.memory import allocate_tables, free_tables, set_word
from blocksparse_ops.kernels.numba.outer import (
    ARGUMENTS,
    CHECK_OUTER,
    X_SIDE,
    Y_SIDE,
    new_outer,
    plan_outer,
    run_work_outer,
    set_outer,
    take_outer,
)
from blocksparse_ops.kernels.numba.plan import block_of
from blocksparse_ops.kernels.numba.records import address_of_record
from blocksparse_ops.kernels.numba.threads import threads_allowed

ready_check, call_check = CHECK_OUTER.ready, CHECK_OUTER.call


@kernel
def number_blocks(p, inputBlock, outputBlock):
    """Tell which blocks are in use; from now on they are those of the output, and no others."""
    for g in range(p.plan.groups):
        set_word(inputBlock, g, block_of(p.plan, g, X_SIDE))
        set_word(outputBlock, g, block_of(p.plan, g, Y_SIDE))
        set_word(p.plan.block, 2 * g + X_SIDE, g)
        set_word(p.plan.block, 2 * g + Y_SIDE, 0)


def new_gradient(W, x, y, xIdx, yIdx, alpha, call):
    """The numbers of the blocks in use, on both sides, and the gradient in each."""
    xIdx, yIdx = looked_over(W, xIdx, yIdx)
    ready_check(0, 0)
    call_check(0, 0, (W, x, y, xIdx, yIdx, call))
    p = new_outer(alpha)
    set_outer(p, W, x, y, xIdx, yIdx, alpha, threads_allowed(call.is_threaded))
    tables = allocate_tables(p, take_outer)
    plan_outer(p, x, y, xIdx, yIdx)
    count = p.plan.groups
    inputBlock, outputBlock = np.empty(count, np.int64), np.empty(count, np.int64)
    number_blocks(p, address_of(inputBlock), address_of(outputBlock))
    values = new_zeros((count, x.shape[2], y.shape[2]), alpha)
    blocks = view(values)
    _, rows, columns = blocks.shape
    block_step, row_step, step = blocks.strides
    p.out = Array(blocks.data, (count, 1, rows, columns), (block_step, 0, row_step, step))
    if alpha != 0:
        run_work_outer(alpha, 0, address_of_record(p), p.threads)
    free_tables(p, take_outer, tables)
    return inputBlock, outputBlock, values


NUMBERS = ArrayOfNumba(int64, 1, "C")

NEW_GRADIENT = Unit(
    new_gradient,
    lambda scalar: Tuple((NUMBERS, NUMBERS, ArrayOfNumba(scalar, 3, "C")))(
        *ARGUMENTS, scalar, CALL
    ),
)
