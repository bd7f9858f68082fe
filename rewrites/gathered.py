"""What one writes by gathering blocks, as the op: no array holds a block for each example.

``x[:, None, :] @ W[i, j]`` gathers batch * iSize * oSize numbers before it multiplies; a product
reads each block where it lies.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pytensor.tensor.blas as blas
from pytensor import scalar as ps
from pytensor.graph.basic import Apply, Variable
from pytensor.graph.fg import FunctionGraph
from pytensor.graph.rewriting.basic import copy_stack_trace, node_rewriter
from pytensor.tensor.basic import constant
from pytensor.tensor.blockwise import Blockwise
from pytensor.tensor.elemwise import DimShuffle
from pytensor.tensor.math import Dot, Sum, clip, minimum
from pytensor.tensor.type import uint_dtypes
from pytensor.tensor.variable import TensorVariable

from blocksparse_ops.explain import keep_reason, kept_reasons
from blocksparse_ops.ops import sparse_block_gemv
from blocksparse_ops.rewrites.bias import GATHERS
from blocksparse_ops.rewrites.gathering import (
    WRITES,
    Axes,
    Gather,
    LeftAlone,
    arguments_of,
    axes_of,
    beside,
    check_lengths,
    gather_of,
    need_many_for_dots,
    need_many_for_sums,
    product_of_sizes,
    size_of_place,
    through_axes,
    with_axes,
)
from blocksparse_ops.rewrites.linear import product as product_of_factors
from blocksparse_ops.rewrites.linear import sizes_of
from blocksparse_ops.rewrites.match import classes_in, is_elementwise, register, sole_client
from blocksparse_ops.zeros import is_zeros, zeros

# PyTensor means to remove it.
BATCHED_DOTS = classes_in(blas, "BatchedDot")

# In Numba PyTensor fuses a gather, a product and a sum of it. Without gradients its loop took, for
# blocks of so many rows and columns, 1 to 5 times as long as the op, of 8 x 64 or 16 x 4 down to
# 0.5; with the gradient in the blocks, of so many rows, 1.1 to 5 times, of 4 down to 0.8.
FUSED_SIDE, FUSED_ROWS = 16, 8


class Product(NamedTuple):
    """A sum of products of gathered blocks with another array.

    Attributes
    ----------
    node : Apply
        What computes it, the last one if several do.
    other : TensorVariable
        With the axes of the gathered blocks, of length 1 along those that it does not have.
    axes : Axes
        The roles of these.
    layout : sequence
        Which of them each axis of the result is, 'x' for one of length 1.
    is_dot : bool
        Whether PyTensor multiplies matrices for it.
    """

    node: Apply
    other: TensorVariable
    axes: Axes
    layout: Sequence[int | str]
    is_dot: bool

    @property
    def is_sum(self) -> bool:
        return self.axes.inputs is not None or self.axes.rows is not None


class Use(NamedTuple):
    """A node that multiplies by gathered blocks, whose axes stand in some order there.

    `order` has for each axis of the node's inputs the axis of the blocks, or 'x'.
    """

    gather: Gather
    blocks: TensorVariable
    node: Apply
    position: int
    order: Sequence[int | str]

    @property
    def others(self) -> list[TensorVariable]:
        return [x for k, x in enumerate(self.node.inputs) if k != self.position]


def products_of(fgraph: FunctionGraph, gather: Gather, blocks: TensorVariable) -> list[Product]:
    """The products with gathered blocks.

    Raises
    ------
    LeftAlone
        If anything else is done with these.
    """
    check_lengths(fgraph, gather)
    uses = uses_of(fgraph, gather, blocks, blocks, range(gather.ndim))
    return [(dot_of if is_batched_dot(use.node) else sum_of)(fgraph, use) for use in uses]


def uses_of(
    fgraph: FunctionGraph,
    gather: Gather,
    blocks: TensorVariable,
    rearranged: TensorVariable,
    order: Sequence[int | str],
) -> Iterator[Use]:
    """What multiplies by gathered blocks, or by these with their axes in this order."""
    for client, position in fgraph.clients[rearranged]:
        if isinstance(client.op, DimShuffle):
            [x] = client.outputs
            yield from uses_of(fgraph, gather, blocks, x, through_axes(client, order))
        elif is_batched_dot(client) or is_elementwise(client, ps.Mul):
            yield Use(gather, blocks, client, position, order)
        else:
            raise LeftAlone(f"the gathered blocks are used by {client.op}")


def is_batched_dot(node: Apply) -> bool:
    """Whether a node multiplies matrices of one batch."""
    is_blockwise_dot = isinstance(node.op, Blockwise) and isinstance(node.op.core_op, Dot)
    return isinstance(node.op, BATCHED_DOTS) or is_blockwise_dot


def dot_of(fgraph: FunctionGraph, use: Use) -> Product:
    """row @ blocks or blocks @ column, and its sum over the window."""
    *batch, first, second = use.order
    is_row = use.position == 1
    inner = first if is_row else second
    layout = [*batch, "x", second] if is_row else [*batch, first, "x"]
    if inner == "x":
        raise LeftAlone("the dot sums over nothing")
    [other] = use.others
    if not other.type.broadcastable[-2 if is_row else -1]:
        raise LeftAlone("several rows are multiplied by one block")
    ndim = other.type.ndim
    other = other.dimshuffle([*range(ndim - 2), ndim - 1, ndim - 2])
    total = sum_above(fgraph, use.node)
    if total is not None:
        summed = {layout[axis] for axis in total.op.axis}
        rest = [axis for k, axis in enumerate(layout) if k not in total.op.axis]
        if all(isinstance(axis, int) and axis < use.gather.places for axis in summed):
            try:
                return product_of(use, total, other, rest, {inner, *summed}, is_dot=True)
            except LeftAlone:  # it is also a product before it is summed
                pass
    return product_of(use, use.node, other, layout, {inner}, is_dot=True)


def sum_of(fgraph: FunctionGraph, use: Use) -> Product:
    """sum(x * blocks), or x * blocks where nothing is summed over."""
    if use.node.inputs[use.position] in use.others:
        raise LeftAlone("the gathered blocks are squared")
    other = product_of_factors(use.others)
    total = sum_above(fgraph, use.node)
    if total is None:
        return product_of(use, use.node, other, use.order, set(), is_dot=False)
    summed = {use.order[axis] for axis in total.op.axis} - {"x"}
    layout = [axis for k, axis in enumerate(use.order) if k not in total.op.axis]
    return product_of(use, total, other, layout, summed, is_dot=False)


def sum_above(fgraph: FunctionGraph, node: Apply) -> Apply | None:
    """The sum over some axes that is all that a node is computed for."""
    user = sole_client(fgraph, node.outputs[0])
    is_sum = user is not None and isinstance(user.op, Sum) and user.op.axis is not None
    return user if is_sum else None


def product_of(
    use: Use,
    node: Apply,
    other: TensorVariable,
    layout: Sequence[int | str],
    summed: set[int],
    is_dot: bool,
) -> Product:
    """What a node computes; `other` has its axes in the order of the use."""
    blocks = use.blocks
    if not blocks.dtype == other.dtype == node.outputs[0].dtype:
        raise LeftAlone(f"dtypes differ: blocks of {blocks.dtype}, {other.dtype} beside them")
    places = {axis: k for k, axis in enumerate(use.order) if axis != "x"}
    ones = other.type.broadcastable
    if not all(ones[k] for k, axis in enumerate(use.order) if axis == "x"):
        raise LeftAlone("several rows are multiplied by one block")
    other = other.dimshuffle([places.get(axis, "x") for axis in range(use.gather.ndim)])
    varies = set()
    for axis, (is_one, is_only) in enumerate(
        zip(other.type.broadcastable, blocks.type.broadcastable, strict=True)
    ):
        if is_only and not is_one:
            raise LeftAlone("one block, or a part of it, is repeated")
        if not is_one or (is_only and (axis in summed or axis < use.gather.places)):
            varies.add(axis)
    axes = axes_of(use.gather, varies, summed)
    return Product(node, other, axes, layout, is_dot)


def computed(
    fgraph: FunctionGraph, gather: Gather, product: Product, clamps: bool
) -> TensorVariable:
    """A product by the op, with the axes in the order that they had.

    A gather that `clamps` takes the nearest block for an index out of range.
    """
    axes = product.axes
    order, inputIdx, outputIdx = arguments_of(fgraph, gather, axes)
    W = with_axes(gather.array, order)
    if clamps:
        inputIdx = clamped(inputIdx, W.type.shape[0])
        outputIdx = clamped(outputIdx, W.type.shape[1])
    h = beside(fgraph, gather, product.other, axes, axes.inputs, axes.rows)
    examples = [size_of_place(fgraph, gather, axis) for axis in axes.examples]
    window = 1 if axes.outputs is None else size_of_place(fgraph, gather, axes.outputs)
    columns = (
        1
        if axes.columns is None
        else sizes_of(fgraph, gather.array)[gather.block_axis(axes.columns)]
    )
    sizes = window, columns
    o = zeros((product_of_sizes(examples), *sizes), h.dtype)
    result = sparse_block_gemv(o, W, h, inputIdx, outputIdx)
    copy_stack_trace(product.node.outputs[0], result)
    if len(examples) > 1:
        result = result.reshape((*examples, *sizes), ndim=len(examples) + 2)
    return laid_out(result, (*axes.examples, axes.outputs, axes.columns), product.layout)


def clamped(index: TensorVariable, blocks: int) -> TensorVariable:
    """An index, with the nearest that names a block for one that names none."""
    if is_zeros(index):
        return index
    if index.type.dtype in uint_dtypes:
        return minimum(index, constant(blocks - 1, dtype=np.min_scalar_type(blocks - 1)))
    return clip(index, -blocks, blocks - 1)


def laid_out(
    result: TensorVariable, axes: Sequence[int | None], layout: Sequence[int | str]
) -> TensorVariable:
    """A result that has these axes, with those of the layout."""
    places: dict[int | str | None, int] = {axis: place for place, axis in enumerate(axes)}
    ones = [place for place, axis in enumerate(axes) if axis is None]
    order = [(ones.pop(0) if ones else "x") if axis == "x" else places[axis] for axis in layout]
    return with_axes(result, order)


def by_the_op(
    fgraph: FunctionGraph, node: Apply, check_gain: Callable[..., None], clamps: bool = False
) -> dict[Variable, Variable] | None:
    """All products with gathered blocks by the op, if nothing else uses these and it gains."""
    [blocks] = node.outputs
    try:
        gather = gather_of(node)
        products = products_of(fgraph, gather, blocks)
        check_gain(fgraph, gather, blocks, products)
        results = {}
        for product in products:
            [old] = product.node.outputs
            result = computed(fgraph, gather, product, clamps)
            copy_stack_trace(old, result)
            results[old] = old.type.filter_variable(result, allow_convert=True)
    except LeftAlone as reason:
        if is_multiplied(fgraph, blocks):
            keep_reason(fgraph, blocks, str(reason))
        return None
    except (IndexError, ValueError):  # of sizes or constants: raised when the graph runs
        return None
    kept_reasons(fgraph).pop(blocks, None)
    return results


def is_multiplied(fgraph: FunctionGraph, blocks: TensorVariable) -> bool:
    """Whether something is multiplied by what is gathered."""
    for client, _ in fgraph.clients[blocks]:
        if is_batched_dot(client) or is_elementwise(client, ps.Mul):
            return True
        if isinstance(client.op, DimShuffle) and is_multiplied(fgraph, client.outputs[0]):
            return True
    return False


def check_gain_in_numba(
    fgraph: FunctionGraph, gather: Gather, blocks: TensorVariable, products: list[Product]
) -> None:
    """Raise LeftAlone where the loop that PyTensor makes of a gather and a sum is as fast.

    It is not where both gradients are computed, however small the blocks are.
    """
    if any(product.is_dot for product in products):
        return
    need_sum(products)
    if gather.block_ndim == 2:
        rows, columns = (
            min(size_known(blocks, getattr(product.axes, side)) for product in products)
            for side in ("rows", "columns")
        )
        is_written = any(isinstance(x.op, WRITES) for x, _ in fgraph.clients[gather.indices[0]])
        if is_written and (len(products) > 1 or rows >= FUSED_ROWS):
            return
        if min(rows, columns) >= FUSED_SIDE:
            return
    raise LeftAlone("PyTensor fuses the gather, the product and the sum into one loop")


def check_gain_in_c(
    fgraph: FunctionGraph, gather: Gather, blocks: TensorVariable, products: list[Product]
) -> None:
    """Raise LeftAlone where only products of numbers are summed, or none."""
    if any(product.is_dot for product in products):
        raise LeftAlone("dots are what local_gathered_product is for")
    need_sum(products)
    if all(is_dot_of_numbers(blocks, product) for product in products):
        raise LeftAlone("a block is a number")


def check_gain_in_jax(
    fgraph: FunctionGraph, gather: Gather, blocks: TensorVariable, products: list[Product]
) -> None:
    """Raise LeftAlone where XLA makes of the op what it makes of the form, or something faster."""
    if any(product.is_dot for product in products):
        need_many_for_dots(gather, blocks)
    else:
        need_sum(products)
        need_many_for_sums(gather, blocks)


def need_sum(products: list[Product]) -> None:
    if not any(product.is_sum for product in products):
        raise LeftAlone("no products are summed")


def size_known(x: TensorVariable, axis: int | None) -> int:
    return 1 if axis is None else x.type.shape[axis] or 1


def is_dot_of_numbers(blocks: TensorVariable, product: Product) -> bool:
    """Whether a sum is known to have one term."""
    axes = product.axes
    return axes.inputs is None and (axes.rows is None or blocks.type.shape[axes.rows] == 1)


@node_rewriter(GATHERS)
def local_gathered_product(fgraph: FunctionGraph, node: Apply) -> dict[Variable, Variable] | None:
    """row @ W[i, j] -> gemv(zeros, W, row, i, j)

    For all products with the gathered blocks, if nothing else uses these: each time a gather less
    is used.
    """
    return by_the_op(fgraph, node, check_gain_in_numba)


@node_rewriter(GATHERS)
def local_gathered_sum(fgraph: FunctionGraph, node: Apply) -> dict[Variable, Variable] | None:
    """(column * W[i, j]).sum(rows) -> gemv(zeros, W, column, i, j), where C++ is compiled"""
    return by_the_op(fgraph, node, check_gain_in_c)


@node_rewriter(GATHERS)
def local_gathered_product_in_jax(
    fgraph: FunctionGraph, node: Apply
) -> dict[Variable, Variable] | None:
    """row @ W[i, j] -> gemv(zeros, W, row, i, j), of blocks that JAX would not gather at once

    An index out of range is clamped, as JAX clamps that of a gather.
    """
    return by_the_op(fgraph, node, check_gain_in_jax, clamps=True)


# Before what looks at the results: norms of gradients from 1.54 on, biases and steps.
register(local_gathered_product, "inplace", position=1.52)
register(local_gathered_sum, "inplace", "cxx_only", position=1.521)
register(local_gathered_product_in_jax, position=1.522, modes="jax")
