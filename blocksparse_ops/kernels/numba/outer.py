"""o[xIdx[n, v], yIdx[n, w]] += alpha * outer(x[n, v], y[n, w])"""

from collections import namedtuple

import numpy as np
from numba import prange
from numba.core.types import NamedTuple, int64, void

from blocksparse_ops.kernels.numba.arrays import INDEX_ARRAY, array_type, keep_alive
from blocksparse_ops.kernels.numba.check import FAIL, FAULT, check, count_from_start
from blocksparse_ops.kernels.numba.choose import threads_for
from blocksparse_ops.kernels.numba.compile import Unit, kernel
from blocksparse_ops.kernels.numba.memory import (
    keep,
    new_memory,
    open_memory,
    record_of,
    row_addresses,
    set_word,
    take,
    word_at,
)
from blocksparse_ops.kernels.numba.pack import Right, copy_elements
from blocksparse_ops.kernels.numba.panel import (
    MOST_DEPTH,
    PANELS,
    STRIP_DEPTH,
    ceil_div,
    cut_columns,
    panel_of,
    size_of,
)
from blocksparse_ops.kernels.numba.plan import (
    MAKE_PLAN,
    PLAN,
    Side,
    block_of,
    call_make_plan,
    first_triple,
    plan_words,
    row_of,
)
from blocksparse_ops.kernels.numba.prefetch import NOTHING, Region, start_fetching
from blocksparse_ops.kernels.numba.scratch import scratch_of, scratch_words
from blocksparse_ops.kernels.numba.split import Share, panels_of_share, share_of
from blocksparse_ops.kernels.numba.tile import (
    ADD_PRODUCTS,
    FACTOR_BYTES,
    FETCHING,
    MOST_ADDRESSES,
    add_products_of_rows,
    set_right,
    set_task,
)
from blocksparse_ops.signature import OUTER

AGREEMENTS = OUTER.equal_sizes

# What all threads work on: Numba hands no tuple of tuples to its threads, so they get its address.
Outer = namedtuple("Outer", "out x_step y_step plan x_rows y_rows panels threads scratch alpha")


def outer_type(scalar):
    members = (array_type(4), int64, int64, PLAN, int64, int64, PANELS, int64, int64, scalar)
    return NamedTuple(members, Outer)


outer_words, read_outer = record_of(outer_type)


# So many rows of the widest panel fit into the scratch.
CHUNK_ROWS = MOST_DEPTH // 4

ROWS_AHEAD = 32

# Sides of the plan. Not literals, for which Numba would compile once more.
X_SIDE, Y_SIDE = np.int64(0), np.int64(1)


@kernel
def x_bytes(alpha):
    """The room for a factor, and for rows of x."""
    return FACTOR_BYTES + CHUNK_ROWS * MOST_ADDRESSES * size_of(alpha)


def check_outer(o, x, y, xIdx, yIdx, alpha):
    """Return a record of what is wrong."""
    sizes = o.shape + x.shape + y.shape + xIdx.shape + yIdx.shape
    triples = (x.shape[0], x.shape[1], y.shape[1])
    return check(sizes, AGREEMENTS, triples, xIdx, o.shape[0], yIdx, o.shape[1])


def run_outer(out, x, y, xIdx, yIdx, alpha, most_threads):
    """Add to `out`, which holds the initial values; all has been checked."""
    x_rows, y_rows = x.shape[0] * x.shape[1], y.shape[0] * y.shape[1]
    threads = threads_for(x_rows * y.shape[1], x.shape[2] * y.shape[2], most_threads)
    # Twice the rows: their blocks, and where they start.
    words = scratch_words(threads, x_bytes(alpha), alpha) + 2 * (x_rows + y_rows)
    first = Side(0, x_rows, x.shape[1], out.shape[0])
    second = Side(0, y_rows, y.shape[1], out.shape[1])
    array = new_memory(words + plan_words(first, second) + outer_words(alpha))
    memory = open_memory(array)
    scratch = take(memory, scratch_words(threads, x_bytes(alpha), alpha))
    first = Side(count_from_start(xIdx, first.blocks, memory), *first[1:])
    second = Side(count_from_start(yIdx, second.blocks, memory), *second[1:])
    p = Outer(
        out,
        x.strides[2],
        y.strides[2],
        call_make_plan(alpha, (first, second, memory)),
        row_addresses(x, memory),
        row_addresses(y, memory),
        cut_columns(out.shape[3], alpha),
        threads,
        scratch,
        alpha,
    )
    outer = keep(memory, p, outer_words(alpha))
    if threads == 1:  # a prange would wake them all the same
        call_work_outer(alpha, (outer, 0, alpha))
    else:
        for thread in prange(threads):
            call_work_outer(alpha, (outer, thread, alpha))
    keep_alive(array)


def work_outer(outer, thread, alpha):
    """The part of one thread. All parts may be worked on side by side."""
    p = read_outer(outer, alpha)
    scratch = scratch_of(p.scratch, thread, p.threads, x_bytes(alpha), alpha)
    share = share_of(first_triple(p.plan, p.plan.groups) * p.panels.count, thread, p.threads)
    for g in range(p.plan.groups):
        start, end = first_triple(p.plan, g), first_triple(p.plan, g + 1)
        mine = panels_of_share(share, p.panels.count, start, end - start)
        if mine.first == mine.last:
            continue
        for first in range(start, end, CHUNK_ROWS):
            chunk = Share(first, min(first + CHUNK_ROWS, end))
            for number in range(mine.first, mine.last):
                add_panel(p, g, chunk, panel_of(p.panels, number, p.alpha), scratch)


@kernel
def block_address(p, g):
    i, j = block_of(p.plan, g, 0), block_of(p.plan, g, 1)
    return p.out.data + i * p.out.strides[0] + j * p.out.strides[1]


@kernel
def add_panel(p, g, chunk, panel, scratch):
    """The columns of a panel, some of its rows after the other."""
    width, first = panel.width, panel.first * p.y_step
    right = rows_of(
        p, p.y_rows, Y_SIDE, chunk, first, p.y_step, panel.columns, width, scratch.panel
    )
    set_right(scratch.more, right)
    for m in range(0, p.out.shape[2], MOST_ADDRESSES):
        rows = min(p.out.shape[2] - m, MOST_ADDRESSES)
        add_rows(p, g, chunk, panel, m, rows, scratch)


@kernel
def rows_of(p, rows, side, chunk, offset, step, count, width, scratch):
    """Part of the rows of x or y that a chunk of triples joins, as a matrix.

    In the scratch, so wide; or where it lies, if it is a single row.
    """
    size = size_of(p.alpha)
    if chunk.last - chunk.first == 1 and step == size:
        return Right(word_at(rows, row_of(p.plan, chunk.first, side)) + offset, 0)
    to_step = width * size
    for t in range(chunk.first, chunk.last):
        row = word_at(rows, row_of(p.plan, t, side)) + offset
        copy_elements(row, step, count, scratch + (t - chunk.first) * to_step, p.alpha)
    return Right(scratch, to_step)


@kernel
def add_rows(p, g, chunk, panel, m, rows, scratch):
    """Rows m to m + rows of a panel: the columns of x are the left operand."""
    size = size_of(p.alpha)
    corner = m * p.out.strides[2] + panel.first * p.out.strides[3]
    fetch_later(p, g, m, rows, panel, chunk, scratch)
    x = rows_of(
        p,
        p.x_rows,
        X_SIDE,
        chunk,
        m * p.x_step,
        p.x_step,
        rows,
        np.int64(MOST_ADDRESSES),
        scratch.more + FACTOR_BYTES,
    )
    out = block_address(p, g) + corner
    for r in range(rows):
        set_word(scratch.left, r, x.start + r * size)
        set_word(scratch.to, r, out + r * p.out.strides[2])
    length, columns, to_step = chunk.last - chunk.first, panel.columns, p.out.strides[3]
    set_task(scratch.task, (x.step, 0), scratch.more, 1, length, to_step, columns, p.alpha)
    add_products_of_rows(panel, rows, scratch.left, scratch.to, scratch.task, p.alpha)


@kernel
def fetch_later(p, g, m, rows, panel, chunk, scratch):
    """Ask for what follows so far behind that it comes in time, and is still there at its turn."""
    m += min(ROWS_AHEAD, p.out.shape[2])
    if m >= p.out.shape[2]:
        m, g = m - p.out.shape[2], g + 1
    region = NOTHING
    if g < p.plan.groups and p.out.strides[3] == size_of(p.alpha):
        start = block_address(p, g) + m * p.out.strides[2] + panel.first * size_of(p.alpha)
        rows = min(rows, p.out.shape[2] - m)
        region = Region(start, rows, panel.columns * size_of(p.alpha), p.out.strides[2])
    times = ceil_div(rows, panel.rows) * ceil_div(chunk.last - chunk.first, STRIP_DEPTH)
    start_fetching(scratch.more + FETCHING, region, times)


def arguments(scalar):
    return (array_type(4), array_type(3), array_type(3), INDEX_ARRAY, INDEX_ARRAY, scalar)


def work_signature(scalar):
    return void(int64, int64, scalar)


def run_signature(scalar):
    return void(*arguments(scalar), int64)


CHECK_OUTER = Unit(check_outer, lambda scalar: FAULT(*arguments(scalar)), uses=[FAIL])
WORK_OUTER = Unit(work_outer, work_signature, uses=[ADD_PRODUCTS])
RUN_OUTER, RUN_OUTER_PARALLEL = (
    Unit(run_outer, run_signature, uses=[MAKE_PLAN, WORK_OUTER], parallel=parallel)
    for parallel in (False, True)
)
call_work_outer = WORK_OUTER.call
