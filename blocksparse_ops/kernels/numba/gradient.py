"""The blocks that an outer product on zeros adds to, and what it adds to each."""

from numba import prange
from numba.core.types import Array as ArrayOfNumba
from numba.core.types import int64, void

from blocksparse_ops.kernels.numba.arrays import Array, array_type
from blocksparse_ops.kernels.numba.compile import Unit, kernel
from blocksparse_ops.kernels.numba.memory import allocate_tables, set_word
from blocksparse_ops.kernels.numba.outer import (
    ARGUMENTS,
    OUTER_RECORD,
    X_SIDE,
    Y_SIDE,
    call_work_outer,
    outer_at,
    plan_outer,
    set_outer,
    take_outer,
)
from blocksparse_ops.kernels.numba.plan import block_of

OUTER_WORDS = OUTER_RECORD.words


def plan_gradient(outer, W, x, y, xIdx, yIdx, alpha, most_threads):
    """Fill the record of an outer product, and return the array that holds its tables."""
    p = outer_at(outer, 0, alpha)
    set_outer(p, W, x, y, xIdx, yIdx, alpha, most_threads)
    tables = allocate_tables(p, take_outer)
    plan_outer(p, x, y, xIdx, yIdx)
    return tables


@kernel
def number_blocks(p, inputBlock, outputBlock):
    """Tell which blocks are in use; from now on they are those of the output, and no others."""
    for g in range(p.plan.groups):
        set_word(inputBlock, g, block_of(p.plan, g, X_SIDE))
        set_word(outputBlock, g, block_of(p.plan, g, Y_SIDE))
        set_word(p.plan.block, 2 * g + X_SIDE, g)
        set_word(p.plan.block, 2 * g + Y_SIDE, 0)


def run_gradient(outer, inputBlock, outputBlock, values, alpha):
    """Fill two tables of block numbers, and add to values, which are zeros."""
    p = outer_at(outer, 0, alpha)
    number_blocks(p, inputBlock, outputBlock)
    blocks, rows, columns = values.shape
    block_step, row_step, step = values.strides
    p.out = Array(values.data, (blocks, 1, rows, columns), (block_step, 0, row_step, step))
    threads = p.threads if alpha != 0 else 0
    if threads == 1:  # a prange would wake them all the same
        call_work_outer(alpha, 0, (outer, 0, alpha))
    else:
        for thread in prange(threads):
            call_work_outer(alpha, 0, (outer, thread, alpha))


TABLES = ArrayOfNumba(int64, 1, "C")

PLAN_GRADIENT = Unit(plan_gradient, lambda scalar: TABLES(int64, *ARGUMENTS, scalar, int64))
RUN_GRADIENT, RUN_GRADIENT_PARALLEL = (
    Unit(
        run_gradient,
        lambda scalar: void(int64, int64, int64, array_type(3), scalar),
        parallel=parallel,
    )
    for parallel in (False, True)
)
