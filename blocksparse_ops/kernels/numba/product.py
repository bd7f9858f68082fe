"""What both paths of gemv work on."""

from blocksparse_ops.kernels.numba.arrays import array_type
from blocksparse_ops.kernels.numba.compile import kernel
from blocksparse_ops.kernels.numba.pack import pack_if_strided
from blocksparse_ops.kernels.numba.panel import PANELS, size_of
from blocksparse_ops.kernels.numba.plan import PLAN
from blocksparse_ops.kernels.numba.prefetch import NOTHING, Region
from blocksparse_ops.kernels.numba.records import SCALAR, Record

# A plan, on which of its sides the input and the output are, and where their rows start; and, for
# threads, how many triples stand before each output block, and whether there are too few panels for
# each thread to have one.
BY_BLOCK = Record(
    "ByBlock", "input output h_rows out_rows triples_before too_few_panels", plan=PLAN
)

# `input` and `output` are tables of the indices counted from the start, which may be padded.
PRODUCT = Record(
    "Product",
    "batch inputs outputs depth columns chunk input output input_is_padded output_is_padded "
    "threads scratches",
    W=array_type(4),
    h=array_type(3),
    out=array_type(3),
    panels=PANELS,
    by_block=BY_BLOCK,
    scale=SCALAR,
)


@kernel
def block_address(p, i, j):
    return p.W.data + i * p.W.strides[0] + j * p.W.strides[1]


@kernel
def is_column_major(p):
    return abs(p.W.strides[2]) < abs(p.W.strides[3])


@kernel
def region_of(p, block, row, rows, column, end_column):
    """Part of a block to prefetch: nothing if neither axis is contiguous."""
    size = size_of(p)
    corner = block + row * p.W.strides[2] + column * p.W.strides[3]
    rows, columns = min(rows, p.depth - row), end_column - column
    if p.W.strides[3] == size:
        return Region(corner, rows, columns * size, p.W.strides[2])
    if p.W.strides[2] == size:
        return Region(corner, columns, rows * size, p.W.strides[3])
    return NOTHING


@kernel
def right_of(p, block, first, length, panel, packed, prefetch):
    """So many rows of a block's panel."""
    row_step, column_step = p.W.strides[2], p.W.strides[3]
    corner = block + first * row_step + panel.first * column_step
    return pack_if_strided(corner, row_step, column_step, length, panel, packed, prefetch)


@kernel
def set_task(p, task, factors, blocks, length, panel):
    """Fill a task for some depth of so many blocks, but for its tables of addresses."""
    task.left_step, task.left_block_step = p.h.strides[2], p.h.strides[1]
    task.factors, task.blocks, task.depth = factors, blocks, length
    task.to_step, task.columns, task.scale = p.out.strides[2], panel.columns, p.scale
