"""o[xIdx[n, v], yIdx[n, w]] += alpha * outer(x[n, v], y[n, w])"""

import numpy as np
from numba.core.types import int64, void

from blocksparse_ops.kernels.numba.arrays import INDEX_ARRAY, array_type
from blocksparse_ops.kernels.numba.check import CALL, check, count_from_start, raise_fault_of
from blocksparse_ops.kernels.numba.choose import threads_for
from blocksparse_ops.kernels.numba.compile import Unit, kernel
from blocksparse_ops.kernels.numba.memory import (
    allocate_tables,
    free_tables,
    locate_rows,
    set_word,
    take,
    word_at,
)
from blocksparse_ops.kernels.numba.pack import Right, copy_elements
from blocksparse_ops.kernels.numba.panel import (
    PACKED_ROWS,
    PANELS,
    STRIP_DEPTH,
    ceil_div,
    cut_columns,
    panel_of,
    size_of,
)
from blocksparse_ops.kernels.numba.plan import (
    FIRST,
    PLAN,
    SECOND,
    block_of,
    call_make_plan,
    first_triple,
    ready_make_plan,
    row_of,
    set_side,
    take_plan,
)
from blocksparse_ops.kernels.numba.prefetch import NOTHING, Region, spread_prefetch
from blocksparse_ops.kernels.numba.records import SCALAR, Record, address_of_record
from blocksparse_ops.kernels.numba.scratch import factor_at, scratch_of, take_scratches
from blocksparse_ops.kernels.numba.split import Share, panels_of_share, share_of
from blocksparse_ops.kernels.numba.threads import Work
from blocksparse_ops.kernels.numba.tile import MOST_ADDRESSES, add_products_of_rows, ready_tiles
from blocksparse_ops.signature import OUTER

EQUAL_SIZES = OUTER.equal_sizes

# What all threads work on. x_rows and y_rows are where the rows of x and y start.
OUTER_RECORD = Record(
    "Outer",
    "x_step y_step x_rows y_rows threads scratches",
    out=array_type(4),
    plan=PLAN,
    panels=PANELS,
    alpha=SCALAR,
)
new_outer, outer_at = OUTER_RECORD.new, OUTER_RECORD.at

ROWS_AHEAD = 32

# Sides of the plan.
X_SIDE, Y_SIDE = FIRST, SECOND


@kernel
def packed_x_bytes(like):
    """The room for rows of x: C++ reads them in place, by a tile of outer's own."""
    return PACKED_ROWS * MOST_ADDRESSES * size_of(like)


def check_outer(o, x, y, xIdx, yIdx, call):
    """Raise what is wrong."""
    sizes = o.shape + x.shape + y.shape + xIdx.shape + yIdx.shape
    triples = (x.shape[0], x.shape[1], y.shape[1])
    fault = check(sizes, EQUAL_SIZES, triples, xIdx, o.shape[0], yIdx, o.shape[1])
    raise_fault_of(fault, call)


@kernel
def set_outer(p, out, x, y, xIdx, yIdx, alpha, most_threads):
    batch, inputs, outputs = x.shape[0], x.shape[1], y.shape[1]
    p.out, p.x_step, p.y_step, p.alpha = out, x.strides[2], y.strides[2], alpha
    p.panels = cut_columns(out.shape[3], p)
    p.threads = threads_for(batch * inputs * outputs, x.shape[2] * y.shape[2], most_threads)
    set_side(p.plan.first, batch * inputs, inputs, out.shape[0], xIdx.known.is_padded)
    set_side(p.plan.second, batch * outputs, outputs, out.shape[1], yIdx.known.is_padded)


@kernel
def take_outer(p, memory):
    """All tables of a call."""
    first, second = p.plan.first, p.plan.second
    p.scratches = take_scratches(memory, p.threads, 1, packed_x_bytes(p), p)
    first.blocks_of_rows = take(memory, first.rows)
    second.blocks_of_rows = take(memory, second.rows)
    take_plan(p.plan, memory)
    p.x_rows, p.y_rows = take(memory, first.rows), take(memory, second.rows)


@kernel
def plan_outer(p, x, y, xIdx, yIdx):
    """Fill all tables, and have all units ready that threads need."""
    one, other = p.plan.first, p.plan.second
    one.blocks_of_rows = count_from_start(xIdx, one.blocks, one.blocks_of_rows)
    other.blocks_of_rows = count_from_start(yIdx, other.blocks, other.blocks_of_rows)
    locate_rows(x, p.x_rows)
    locate_rows(y, p.y_rows)
    ready_make_plan(0, 0)
    call_make_plan(0, 0, (address_of_record(p.plan),))
    ready_tiles(p.panels, p)


def run_outer(out, x, y, xIdx, yIdx, alpha, most_threads):
    """Add to `out`, which holds the initial values; all has been checked."""
    p = new_outer(alpha)
    set_outer(p, out, x, y, xIdx, yIdx, alpha, most_threads)
    array = allocate_tables(p, take_outer)
    plan_outer(p, x, y, xIdx, yIdx)
    run_work_outer(alpha, 0, address_of_record(p), p.threads)
    free_tables(p, take_outer, array)


def work_outer(outer, thread, alpha):
    p = outer_at(outer, 0, alpha)
    scratch = scratch_of(p.scratches, thread, p.threads, 1, packed_x_bytes(p), p)
    share = share_of(first_triple(p.plan, p.plan.groups) * p.panels.count, thread, p.threads)
    for g in range(p.plan.groups):
        start, end = first_triple(p.plan, g), first_triple(p.plan, g + 1)
        mine = panels_of_share(share, p.panels.count, start, end - start)
        if mine.first == mine.last:
            continue
        for first in range(start, end, PACKED_ROWS):
            chunk = Share(first, min(first + PACKED_ROWS, end))
            for number in range(mine.first, mine.last):
                add_panel(p, g, chunk, panel_of(p.panels, number, p), scratch)


@kernel
def block_address(p, g):
    i, j = block_of(p.plan, g, X_SIDE), block_of(p.plan, g, Y_SIDE)
    return p.out.data + i * p.out.strides[0] + j * p.out.strides[1]


@kernel
def add_panel(p, g, chunk, panel, scratch):
    """The columns of a panel, some of its rows after the other."""
    factor, offset = factor_at(scratch.factors, 0, p), panel.first * p.y_step
    right = pack_rows(
        p, p.y_rows, Y_SIDE, chunk, offset, p.y_step, panel.columns, panel.width, scratch.packed
    )
    factor.start, factor.step = right.start, right.step
    for m in range(0, p.out.shape[2], MOST_ADDRESSES):
        rows = min(p.out.shape[2] - m, MOST_ADDRESSES)
        add_rows(p, g, chunk, panel, m, rows, scratch)


@kernel
def pack_rows(p, rows, side, chunk, offset, step, count, width, packed):
    """Part of the rows of x or y that a chunk of triples joins, as a matrix.

    Packed, so wide; or in place, if it is a single row.
    """
    size = size_of(p)
    if chunk.last - chunk.first == 1 and step == size:
        return Right(word_at(rows, row_of(p.plan, chunk.first, side)) + offset, 0)
    to_step = width * size
    for t in range(chunk.first, chunk.last):
        row = word_at(rows, row_of(p.plan, t, side)) + offset
        copy_elements(row, step, count, packed + (t - chunk.first) * to_step, p)
    return Right(packed, to_step)


@kernel
def add_rows(p, g, chunk, panel, m, rows, scratch):
    """Rows m to m + rows of a panel: the columns of x are the left operand."""
    size, task = size_of(p), scratch.task
    prefetch_behind(p, g, m, rows, panel, chunk, factor_at(scratch.factors, 0, p).prefetch)
    x = pack_rows(
        p, p.x_rows, X_SIDE, chunk, m * p.x_step, p.x_step, rows, np.int64(MOST_ADDRESSES),
        scratch.more,
    )  # fmt: skip
    out = block_address(p, g) + m * p.out.strides[2] + panel.first * p.out.strides[3]
    for r in range(rows):
        set_word(scratch.left, r, x.start + r * size)
        set_word(scratch.to, r, out + r * p.out.strides[2])
    task.left_step, task.left_block_step = x.step, 0
    task.factors, task.blocks, task.depth = scratch.factors, 1, chunk.last - chunk.first
    task.to_step, task.columns, task.scale = p.out.strides[3], panel.columns, p.alpha
    add_products_of_rows(panel, rows, scratch.left, scratch.to, task)


@kernel
def prefetch_behind(p, g, m, rows, panel, chunk, prefetch):
    """Rows far enough behind row m to arrive in time, near enough not to be evicted before use."""
    m += min(ROWS_AHEAD, p.out.shape[2])
    if m >= p.out.shape[2]:
        m, g = m - p.out.shape[2], g + 1
    region = NOTHING
    if g < p.plan.groups and p.out.strides[3] == size_of(p):
        start = block_address(p, g) + m * p.out.strides[2] + panel.first * size_of(p)
        rows = min(rows, p.out.shape[2] - m)
        region = Region(start, rows, panel.columns * size_of(p), p.out.strides[2])
    calls = ceil_div(rows, panel.rows) * ceil_div(chunk.last - chunk.first, STRIP_DEPTH)
    spread_prefetch(prefetch, region, calls)


ARGUMENTS = (array_type(4), array_type(3), array_type(3), INDEX_ARRAY, INDEX_ARRAY)

CHECK_OUTER = Unit(check_outer, lambda _: void(*ARGUMENTS, CALL))
RUN_OUTER = Unit(run_outer, lambda scalar: void(*ARGUMENTS, scalar, int64))
run_work_outer = Work(work_outer).run
