"""What both paths of the product work on."""

from collections import namedtuple

from numba.core.types import NamedTuple, int64

from blocksparse_ops.kernels.numba.arrays import array_type
from blocksparse_ops.kernels.numba.compile import kernel
from blocksparse_ops.kernels.numba.pack import by_rows
from blocksparse_ops.kernels.numba.panel import PANELS, size_of
from blocksparse_ops.kernels.numba.prefetch import NOTHING, Region

Product = namedtuple(
    "Product", "W h out batch inputs outputs depth columns panels chunk input output scale"
)


def product_type(scalar):
    arrays = (array_type(4), array_type(3), array_type(3))
    return NamedTuple((*arrays, *[int64] * 5, PANELS, *[int64] * 3, scalar), Product)


@kernel
def block_address(p, i, j):
    return p.W.data + i * p.W.strides[0] + j * p.W.strides[1]


@kernel
def columns_lie_together(p):
    return abs(p.W.strides[2]) < abs(p.W.strides[3])


@kernel
def part_of(p, block, row, rows, column, end_column):
    """Part of a block, to be fetched: nothing if its elements lie apart."""
    size = size_of(p.scale)
    corner = block + row * p.W.strides[2] + column * p.W.strides[3]
    rows, columns = min(rows, p.depth - row), end_column - column
    if p.W.strides[3] == size:
        return Region(corner, rows, columns * size, p.W.strides[2])
    if p.W.strides[2] == size:
        return Region(corner, columns, rows * size, p.W.strides[3])
    return NOTHING


@kernel
def right_of(p, block, first, length, panel, scratch, fetching):
    """So many rows of a block's panel as a tile reads them, in the scratch if need be."""
    row_step, column_step = p.W.strides[2], p.W.strides[3]
    corner = block + first * row_step + panel.first * column_step
    return by_rows(corner, row_step, column_step, length, panel, scratch, fetching, p.scale)
