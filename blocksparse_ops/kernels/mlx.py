"""Both ops for MLX: steps over tiles, one after the other in the graph that MLX evaluates."""

from collections.abc import Iterable

import mlx.core as mx

from blocksparse_ops.kernels.mapped import fold
from blocksparse_ops.kernels.tiles import (
    Form,
    Step,
    choose_form,
    count_from_start,
    cut,
    is_unknown,
    rows_of_step,
    sizes_of,
    unknown,
)

# The working set of a step, in elements. Large: MLX has no loops, so each step adds to the graph.
STEP_ELEMENTS = 1 << 20


def counted(index: mx.array, blocks: int, padding: int | None) -> mx.array:
    # A copy, which MLX does not fuse with what uses it: a product of a product, with a gradient of
    # it, would fail.
    return mx.contiguous(count_from_start(mx, index, blocks, mx.int64, padding))


def rows(values: mx.array) -> mx.array:
    """The rows of all windows one after the other, and one of zeros: for what is out of range."""
    return mx.pad(fold(values), ((0, 1), (0, 0)))


def multiplies_matrices(dtype: mx.Dtype) -> bool:
    """Whether MLX has a matmul of this dtype; if not, products are materialised, then summed."""
    return mx.issubdtype(dtype, mx.inexact)


def matmul(one: mx.array, other: mx.array) -> mx.array:
    if multiplies_matrices(one.dtype):
        return one @ other
    return (one[..., None] * other[..., None, :, :]).sum(-2).astype(one.dtype)


def searchsorted(ascending: mx.array, values: mx.array) -> mx.array:
    """How many are less than each value: by halving, for MLX maps no search of what is mapped."""
    size = ascending.size
    # Zeros made of the values: of two that are alike MLX's compiler makes one, which it cannot map.
    less = (values * 0).astype(mx.int64)
    for exponent in reversed(range(size.bit_length())):
        more = less + (1 << exponent)
        is_less = mx.logical_and(more <= size, ascending[mx.minimum(more, size) - 1] < values)
        less = mx.where(is_less, more, less)
    return less


def steps_of(inputIdx: mx.array, outputIdx: mx.array, blocks: mx.array) -> Iterable[Step]:
    """The steps of a product with these blocks; the indices are counted from the start."""
    sizes = sizes_of(inputIdx, outputIdx, blocks.shape[:2])
    if not sizes.triples or not blocks.size:
        return []
    form = choose_form(sizes, *blocks.shape[2:], step_elements=STEP_ELEMENTS)
    if not multiplies_matrices(blocks.dtype):
        form = Form(1, form.tiles)
    tiles = cut(mx, inputIdx, outputIdx, sizes, form, searchsorted)
    return (rows_of_step(mx, tiles, number) for number in range(tiles.most_steps))


def gemv(
    o: mx.array,
    W: mx.array,
    h: mx.array,
    inputIdx: mx.array,
    outputIdx: mx.array,
    *,
    padding: int | None = None,
) -> mx.array:
    """o[n, w] + sum_v h[n, v] @ W[inputIdx[n, v], outputIdx[n, w]]

    A result that an index out of range takes part in is NaN.
    """
    iBlocks, oBlocks = W.shape[:2]
    i, j = counted(inputIdx, iBlocks, padding), counted(outputIdx, oBlocks, padding)
    left, sums = rows(h), rows(o)
    for step in steps_of(i, j, W):
        # MLX reads past the end; what is out of range adds to the row of zeros.
        blocks = W[mx.minimum(step.i, iBlocks - 1), mx.minimum(step.j, oBlocks - 1)]
        sums = sums.at[step.right].add(matmul(left[step.left], blocks))
    wrong = is_unknown(mx, inputIdx, outputIdx, i, j, (iBlocks, oBlocks), padding)
    return mx.where(wrong[:, :, None], unknown(o), sums[:-1].reshape(o.shape)).astype(o.dtype)


def outer(
    o: mx.array,
    x: mx.array,
    y: mx.array,
    xIdx: mx.array,
    yIdx: mx.array,
    *,
    padding: int | None = None,
) -> mx.array:
    """o[xIdx[n, v], yIdx[n, w]] += outer(x[n, v], y[n, w]), without what is out of range."""
    iBlocks, oBlocks = o.shape[:2]
    xIdx, yIdx = counted(xIdx, iBlocks, padding), counted(yIdx, oBlocks, padding)
    left, right = rows(x), rows(y)
    for step in steps_of(xIdx, yIdx, o):
        products = matmul(left[step.left].swapaxes(-1, -2), right[step.right])
        # MLX writes past the end; what is out of range has rows of zeros.
        o = o.at[mx.minimum(step.i, iBlocks - 1), mx.minimum(step.j, oBlocks - 1)].add(products)
    return o
