"""o[xIdx[b, v], yIdx[b, w]] += alpha * outer(x[b, v], y[b, w])"""

from collections import namedtuple

from numba import prange
from numba.core.types import NamedTuple, UniTuple, int64, void

from blocksparse_ops.kernels.numba.arrays import (
    INDEX_ARRAY,
    address_of,
    array_type,
    keep_alive,
    row_addresses,
    store,
    word_at,
)
from blocksparse_ops.kernels.numba.check import check, count_from_start
from blocksparse_ops.kernels.numba.choose import threads_for
from blocksparse_ops.kernels.numba.compile import Unit, kernel
from blocksparse_ops.kernels.numba.pack import Right, copy_elements
from blocksparse_ops.kernels.numba.panel import (
    MOST_DEPTH,
    PANELS,
    STRIP_DEPTH,
    ceil_div,
    cut_columns,
    lanes_of,
    panel_of,
    size_of,
)
from blocksparse_ops.kernels.numba.plan import (
    MAKE_PLAN,
    PLAN_AT,
    Side,
    block_of,
    call_make_plan,
    locate_plan,
    row_of,
    start_of,
)
from blocksparse_ops.kernels.numba.prefetch import NOTHING, Region, start_fetching
from blocksparse_ops.kernels.numba.scratch import scratch_memory, scratch_of
from blocksparse_ops.kernels.numba.split import Share, panels_of_share, share_of
from blocksparse_ops.kernels.numba.tile import (
    ADD_PRODUCTS,
    FACTOR_BYTES,
    FETCHING,
    MOST_ADDRESSES,
    RIGHT_START,
    RIGHT_STEP,
    Left,
    To,
    add_products_of_rows,
)
from blocksparse_ops.signature import OUTER

AGREEMENTS = OUTER.agreements

Outer = namedtuple("Outer", "out x_step y_step plan x_rows y_rows panels alpha")


def outer_type(scalar):
    members = (array_type(4), int64, int64, PLAN_AT, int64, int64, PANELS, scalar)
    return NamedTuple(members, Outer)


# So many rows of the widest panel fit into the scratch.
CHUNK_ROWS = MOST_DEPTH // 4


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
    first = Side(count_from_start(xIdx, out.shape[0]), x.shape[1], out.shape[0])
    second = Side(count_from_start(yIdx, out.shape[1]), y.shape[1], out.shape[1])
    plan = call_make_plan(None, (first, second))
    x_rows, y_rows = row_addresses(x), row_addresses(y)
    p = Outer(
        out,
        x.strides[2],
        y.strides[2],
        locate_plan(plan),
        address_of(x_rows),
        address_of(y_rows),
        cut_columns(out.shape[3], lanes_of(alpha)),
        alpha,
    )
    threads = threads_for(len(plan.triple), x.shape[2] * y.shape[2], most_threads)
    memory = scratch_memory(threads, x_bytes(alpha), alpha)
    start = address_of(memory)
    for thread in prange(threads):
        call_work_outer(alpha, (p, thread, threads, start))
    keep_alive((plan, x_rows, y_rows, memory))


def work_outer(p, thread, threads, memory):
    """The part of one thread. All parts may be worked on side by side."""
    scratch = scratch_of(memory, thread, x_bytes(p.alpha), p.alpha)
    share = share_of(start_of(p.plan, p.plan.groups) * p.panels.count, thread, threads)
    for g in range(p.plan.groups):
        start, end = start_of(p.plan, g), start_of(p.plan, g + 1)
        mine = panels_of_share(share, p.panels.count, start, end - start)
        if mine.first == mine.last:
            continue
        for first in range(start, end, CHUNK_ROWS):
            chunk = Share(first, min(first + CHUNK_ROWS, end))
            for number in range(mine.first, mine.last):
                add_panel(p, g, chunk, panel_of(p.panels, number), scratch)


@kernel
def block_address(p, g):
    i, j = block_of(p.plan, g, 0), block_of(p.plan, g, 1)
    return p.out.data + i * p.out.strides[0] + j * p.out.strides[1]


@kernel
def add_panel(p, g, chunk, panel, scratch):
    """The columns of a panel, some of its rows after the other."""
    width, first = panel.lanes * panel.vectors, panel.first * p.y_step
    right = rows_of(p, p.y_rows, 1, chunk, first, p.y_step, panel.columns, width, scratch.panel)
    store(scratch.more + RIGHT_START, right.start)
    store(scratch.more + RIGHT_STEP, right.step)
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
    fetch_same_part(p, g, corner, chunk, panel, rows, scratch)
    x = rows_of(
        p,
        p.x_rows,
        0,
        chunk,
        m * p.x_step,
        p.x_step,
        rows,
        MOST_ADDRESSES,
        scratch.more + FACTOR_BYTES,
    )
    out = block_address(p, g) + corner
    for r in range(rows):
        store(scratch.left + 8 * r, x.start + r * size)
        store(scratch.to + 8 * r, out + r * p.out.strides[2])
    left, to = Left(scratch.left, x.step, 0), To(scratch.to, p.out.strides[3])
    length = chunk.last - chunk.first
    add_products_of_rows(panel, rows, left, scratch.more, 1, length, to, p.alpha)


@kernel
def fetch_same_part(p, g, corner, chunk, panel, rows, scratch):
    """Ask for the same part of the next block."""
    region = NOTHING
    if g + 1 < p.plan.groups and p.out.strides[3] == size_of(p.alpha):
        row_bytes = panel.columns * size_of(p.alpha)
        region = Region(block_address(p, g + 1) + corner, rows, row_bytes, p.out.strides[2])
    times = ceil_div(rows, panel.rows) * ceil_div(chunk.last - chunk.first, STRIP_DEPTH)
    start_fetching(scratch.more + FETCHING, region, times)


def arguments(scalar):
    return (array_type(4), array_type(3), array_type(3), INDEX_ARRAY, INDEX_ARRAY, scalar)


def work_signature(scalar):
    return void(outer_type(scalar), int64, int64, int64)


def run_signature(scalar):
    return void(*arguments(scalar), int64)


CHECK_OUTER = Unit(check_outer, lambda scalar: UniTuple(int64, 6)(*arguments(scalar)))
WORK_OUTER = Unit(work_outer, work_signature, uses=[ADD_PRODUCTS])
RUN_OUTER, RUN_OUTER_PARALLEL = (
    Unit(run_outer, run_signature, uses=[MAKE_PLAN, WORK_OUTER], parallel=parallel)
    for parallel in (False, True)
)
call_work_outer = WORK_OUTER.call
