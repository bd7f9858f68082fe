"""Both ops for PyTorch, computed: loops over tiles, a product as it stands, and forms for PyTorch's
compiler.

That takes an operator as it is. So what depends on the values of indices, above all an error, needs
no form that it could trace, and the indices are checked and sorted by NumPy.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.library import Library, custom_op, register_fake

from blocksparse_ops import reference
from blocksparse_ops.kernels.mapped import fold, no_block_of, numbers_of
from blocksparse_ops.kernels.tiles import (
    SORTED_REUSE,
    Step,
    choose_form,
    cut,
    reuse_of,
    rows_of_step,
    sizes_of,
)
from blocksparse_ops.reference import NO_BLOCK
from blocksparse_ops.signature import GEMV, OUTER, Signature

# The working set of a step, in elements: a step has more overhead than in compiled code.
STEP_ELEMENTS = 1 << 18

# So many elements of products are made at once.
AT_ONCE_ELEMENTS = 1 << 21

# Of a sum that is written out for PyTorch's compiler.
MOST_TERMS = 16

# So many contiguous columns, or rows, the compiler makes vectors of.
VECTOR_COLUMNS = 16
VECTOR_DEPTH = 8

# Blocks of fewer elements are multiplied as they stand: sorting takes longer than it saves.
SORTED_BLOCK = 1 << 12

# So are those of up to so many bytes, where all weights stay in the cache, as fewer than so many
# bytes do, and PyTorch's compiler makes one loop of a product: with gradients blocks of 64 KiB took
# 0.6 to 0.7 times as long, of 128 KiB 1 to 1.5 times.
FUSED_BYTES = 1 << 16
CACHED_BYTES = 1 << 24

# An operator of a library of one's own has half the overhead of a `custom_op`.
LIBRARY = Library("blocksparse_ops", "FRAGMENT")


def checked(
    signature: Signature, arguments: Sequence[Tensor], padding: int | None
) -> list[np.ndarray]:
    """The indices, which come last, as arrays counted from the start, if all is right."""
    *values, left, right = arguments
    indices = left.numpy(force=True), right.numpy(force=True)
    return reference.check(signature, [*values, *indices], padding)


def operator(schema: str, fake: Callable) -> Callable[[Callable], Callable]:
    """Make an operator of a function without derivatives, that PyTorch's compiler takes as it is.

    Parameters
    ----------
    schema : str
    fake : callable
        What has the shape and dtype of the result.
    """
    name = schema.partition("(")[0]

    def register(function: Callable) -> Callable:
        LIBRARY.define(schema)
        LIBRARY.impl(name, function, "CompositeExplicitAutograd")
        register_fake(f"blocksparse_ops::{name}", fake, lib=LIBRARY)
        return getattr(torch.ops.blocksparse_ops, name)

    return register


def like_first(o: Tensor, *others: Any) -> Tensor:
    return torch.empty_like(o, memory_format=torch.contiguous_format)


def sorting_pays(
    inputIdx: Tensor, outputIdx: Tensor, blocks: Tensor, least: int = SORTED_BLOCK
) -> bool:
    reuse = reuse_of(sizes_of(inputIdx, outputIdx, blocks.shape[:2]))
    return reuse >= SORTED_REUSE and blocks.shape[2] * blocks.shape[3] >= least


def fusing_pays(W: Tensor, inputIdx: Tensor, outputIdx: Tensor) -> bool:
    """Whether PyTorch's compiler makes a faster product than one that sorts blocks."""
    is_cached = W.numel() * W.element_size() < CACHED_BYTES
    least = FUSED_BYTES // W.element_size() + 1 if is_cached else SORTED_BLOCK
    return not sorting_pays(inputIdx, outputIdx, W, least)


def steps_of(
    signature: Signature, arguments: Sequence[Tensor], blocks: Tensor, padding: int | None
) -> Iterator[Step]:
    """Check the arguments, and yield the steps, as tensors where the blocks are."""
    left, right = checked(signature, arguments, padding)
    sizes = sizes_of(left, right, blocks.shape[:2])
    if sizes.triples and blocks.numel():
        left = np.where(left == NO_BLOCK, sizes.iBlocks, left)
        right = np.where(right == NO_BLOCK, sizes.oBlocks, right)
        form = choose_form(sizes, *blocks.shape[2:], step_elements=STEP_ELEMENTS)
        tiles = cut(np, left, right, sizes, form)
        for number in range(tiles.steps):
            step = rows_of_step(np, tiles, number)
            is_block = (step.i < sizes.iBlocks) & (step.j < sizes.oBlocks)
            yield Step(*(torch.from_numpy(x[is_block]).to(blocks.device) for x in step))


def rows(values: Tensor) -> Tensor:
    """The rows of all windows one after the other, and one of zeros that pads tiles."""
    return torch.cat([fold(values), values.new_zeros(1, values.shape[2])])


def counted(index: Tensor, blocks: int) -> Tensor:
    """An index counted from the start; `blocks` if out of range, for which an operator raises."""
    wraps = index.dtype == torch.uint64
    index = index.to(torch.int64)
    index = torch.where(index < 0, blocks if wraps else index + blocks, index)
    return torch.where((index >= 0) & (index < blocks), index, blocks)


GEMV_SCHEMA = (
    "gemv(Tensor o, Tensor W, Tensor h, Tensor inputIdx, Tensor outputIdx, int? padding) -> Tensor"
)
OUTER_SCHEMA = (
    "outer(Tensor o, Tensor x, Tensor y, Tensor xIdx, Tensor yIdx, bool checked_already, "
    "int? padding) -> Tensor"
)


@operator(GEMV_SCHEMA, like_first)
def gemv_in_steps(
    o: Tensor, W: Tensor, h: Tensor, inputIdx: Tensor, outputIdx: Tensor, padding: int | None
) -> Tensor:
    left, sums = rows(h), rows(o)
    for step in steps_of(GEMV, (o, W, h, inputIdx, outputIdx), W, padding):
        products = torch.matmul(left[step.left], W[step.i, step.j])
        sums.index_add_(0, step.right.flatten(), fold(products))
    return sums[:-1].reshape(o.shape)


def rows_of_blocks(xIdx: Tensor, yIdx: Tensor, oBlocks: int, padding: int | None) -> Tensor:
    """Which block each product is added to, as a row of the output, or NO_BLOCK.

    The indices count from the start; with `padding` some may be NO_BLOCK.
    """
    i, j = xIdx[:, :, None], yIdx[:, None, :]
    to = i * oBlocks + j
    return to if padding is None else torch.where((i < 0) | (j < 0), NO_BLOCK, to)


def add_rows_at(sums: Tensor, index: Tensor, rows: Tensor, padding: int | None) -> None:
    """sums[index] += rows, in place, without those that belong to no block."""
    if padding is not None:
        is_block = index >= 0
        index, rows = index[is_block], rows[is_block]
    sums.index_add_(0, index, rows)


def outer_by_example(
    o: Tensor, x: Tensor, y: Tensor, xIdx: Tensor, yIdx: Tensor, padding: int | None
) -> None:
    """Add the products of some examples at a time to `o`; the indices count from the start."""
    flat = rows_of_blocks(xIdx, yIdx, o.shape[1], padding)
    sums = fold(o).reshape(-1, o.shape[2] * o.shape[3])
    elements = flat.shape[1] * flat.shape[2] * sums.shape[1]
    of_step = max(STEP_ELEMENTS // elements, 1)
    for some_x, some_y, to in zip(
        x.split(of_step), y.split(of_step), flat.split(of_step), strict=True
    ):
        products = some_x[:, :, None, :, None] * some_y[:, None, :, None, :]
        add_rows_at(sums, to.flatten(), products.reshape(-1, sums.shape[1]), padding)


@operator("add_rows(Tensor o, Tensor index, Tensor rows, int? padding) -> Tensor", like_first)
def add_rows(o: Tensor, index: Tensor, rows: Tensor, padding: int | None) -> Tensor:
    """A copy of `o`, to whose blocks, as rows one after the other, rows are added."""
    o = o.clone(memory_format=torch.contiguous_format)
    add_rows_at(o.view(-1, rows.shape[1]), index, rows, padding)
    return o


def outer_at_once(
    o: Tensor, x: Tensor, y: Tensor, xIdx: Tensor, yIdx: Tensor, padding: int | None
) -> Tensor:
    """For PyTorch's compiler, which makes all products in one loop, of indices in range."""
    iBlocks, oBlocks, *block = o.shape
    i, j = place_of(xIdx, iBlocks, padding), place_of(yIdx, oBlocks, padding)
    rows = rows_of_blocks(i, j, oBlocks, padding)
    products = x[:, :, None, :, None] * y[:, None, :, None, :]
    return add_rows(o, rows.reshape(-1), products.reshape(-1, block[0] * block[1]), padding)


@operator(OUTER_SCHEMA, like_first)
def outer_in_steps(
    o: Tensor,
    x: Tensor,
    y: Tensor,
    xIdx: Tensor,
    yIdx: Tensor,
    checked_already: bool,
    padding: int | None,
) -> Tensor:
    o = o.clone(memory_format=torch.contiguous_format)
    if sorting_pays(xIdx, yIdx, o):
        left, right = rows(x), rows(y)
        for step in steps_of(OUTER, (o, x, y, xIdx, yIdx), o, padding):
            products = torch.matmul(left[step.left].mT, right[step.right])
            o.index_put_((step.i, step.j), products, accumulate=True)
        return o
    if not checked_already:
        checked(OUTER, (o, x, y, xIdx, yIdx), padding)
    if o.numel() and x.numel() and y.numel():
        i = numbers_of(torch, counted, xIdx, o.shape[0], padding)
        j = numbers_of(torch, counted, yIdx, o.shape[1], padding)
        outer_by_example(o, x, y, i, j, padding)
    return o


@custom_op("blocksparse_ops::check_gemv", mutates_args=())
def check_gemv(
    o: Tensor, W: Tensor, h: Tensor, inputIdx: Tensor, outputIdx: Tensor, padding: int | None
) -> tuple[Tensor, Tensor]:
    left, right = map(np.ascontiguousarray, checked(GEMV, (o, W, h, inputIdx, outputIdx), padding))
    return torch.from_numpy(left).to(W.device), torch.from_numpy(right).to(W.device)


@check_gemv.register_fake
def _(
    o: Tensor, W: Tensor, h: Tensor, inputIdx: Tensor, outputIdx: Tensor, padding: int | None
) -> tuple[Tensor, ...]:
    return tuple(like_first(x).to(torch.int64) for x in (inputIdx, outputIdx))


def place_of(index: Tensor, blocks: int, padding: int | None) -> Tensor:
    """What an index that is in range counts from the start, or NO_BLOCK.

    It is read where there is one block, too: PyTorch's compiler leaves out a check whose result
    nothing is computed from.
    """
    place = torch.where(index < 0, index + blocks, index)
    return place if padding is None else torch.where(index == padding, NO_BLOCK, place)


def gemv_fused(
    o: Tensor,
    W: Tensor,
    h: Tensor,
    inputIdx: Tensor,
    outputIdx: Tensor,
    checked_already: bool,
    padding: int | None,
) -> Tensor:
    """For PyTorch's compiler, which makes of it one loop that gathers no block."""
    if not checked_already:
        inputIdx, outputIdx = check_gemv(o, W, h, inputIdx, outputIdx, padding)
        padding = no_block_of(padding)
    i, j = place_of(inputIdx, W.shape[0], padding), place_of(outputIdx, W.shape[1], padding)
    if padding is not None:
        if not W.numel():
            return o.clone()
        of_input, of_output, i, j = i < 0, j < 0, i.clamp(min=0), j.clamp(min=0)
        h = torch.where(of_input[:, :, None], 0, h)
    blocks = W[i[:, None, :], j[:, :, None]]
    if padding is not None:
        blocks = torch.where(of_input[:, None, :, None, None], 0, blocks)
    blocks, row = blocks.flatten(2, 3), h.flatten(1)[:, None, :, None]
    if makes_vectors(W):
        result = o + (row * blocks).sum(2, dtype=o.dtype)
    else:
        result = o + sum_of_products(row, blocks).to(o.dtype)
    return result if padding is None else torch.where(of_output[:, :, None], o, result)


def makes_vectors(W: Tensor) -> bool:
    """Whether PyTorch's compiler makes vectors of a sum of products with gathered blocks.

    Along the depth it does of numbers of 32 bits: with blocks of 16 x 16, a sum of such of 64 bits
    takes seven times as long as its terms written out.
    """
    *_, depth, columns = W.shape
    along_columns = W.stride(3) == 1 and columns >= VECTOR_COLUMNS
    return along_columns or (W.stride(2) == 1 and depth >= VECTOR_DEPTH and W.element_size() <= 4)


def sum_of_products(one: Tensor, other: Tensor) -> Tensor:
    """The sum over the last axis but one.

    Some terms are written out: where there are no columns for vectors, what PyTorch's compiler
    makes of a sum over what it gathers takes up to ten times as long.
    """
    count = one.shape[2]
    terms = next((n for n in range(MOST_TERMS, 1, -1) if count % n == 0), 1)
    one, other = one.unflatten(2, (terms, -1)), other.unflatten(2, (terms, -1))
    sums = sum(one[:, :, k] * other[:, :, k] for k in range(terms))
    return sums.sum(2)
