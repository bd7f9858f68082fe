"""What one writes by gathering blocks, as the ops: no array holds a block for each example.

``x[:, None, :] @ W[i, j]`` gathers batch * iSize * oSize numbers before it multiplies; a product
reads each block where it lies. The gradient in `W` that PyTensor makes of it, as large an array of
outer products that is added to zeros, is an outer.
"""

from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple

import pytensor.tensor.blas as blas
import pytensor.tensor.subtensor as subtensor
from pytensor import scalar as ps
from pytensor.compile.builders import OpFromGraph
from pytensor.graph.basic import Apply, Variable
from pytensor.graph.fg import FunctionGraph
from pytensor.graph.op import Op
from pytensor.graph.rewriting.basic import copy_stack_trace, node_rewriter
from pytensor.tensor.blockwise import Blockwise
from pytensor.tensor.einsum import Einsum
from pytensor.tensor.elemwise import DimShuffle
from pytensor.tensor.math import Dot, neg, true_div
from pytensor.tensor.rewriting.ofg import inline_ofg_node
from pytensor.tensor.type import int_dtypes, uint_dtypes
from pytensor.tensor.variable import TensorVariable

from blocksparse_ops.ops import sparse_block_gemv, sparse_block_outer
from blocksparse_ops.rewrites.bias import GATHERS
from blocksparse_ops.rewrites.linear import minus_one, product, sizes_of
from blocksparse_ops.rewrites.match import (
    classes_in,
    is_elementwise,
    like,
    register,
    register_pass,
    same_shape,
    sole_client,
)
from blocksparse_ops.zeros import BlockFull, full, is_zeros, zeros

# PyTensor 3.0 has a class of its own for what a vector indexes.
WRITES = classes_in(subtensor, "AdvancedIncSubtensor", "AdvancedIncSubtensor1")
# PyTensor means to remove it.
BATCHED_DOTS = classes_in(blas, "BatchedDot")


class Blocks(NamedTuple):
    """``W[inputIdx, outputIdx]``, a block for each example, as arguments of the ops."""

    W: TensorVariable
    inputIdx: TensorVariable
    outputIdx: TensorVariable

    def transposed(self) -> "Blocks":
        return Blocks(self.W.transpose(1, 0, 3, 2), self.outputIdx, self.inputIdx)


class Product(NamedTuple):
    """A batched dot of gathered blocks, transposed or not, and the other operand."""

    node: Apply
    other: TensorVariable
    is_right: bool
    is_transposed: bool


@node_rewriter([Einsum])
def local_gathered_einsum(fgraph: FunctionGraph, node: Apply) -> dict[Variable, Variable] | None:
    """einsum(x, W[i, j]), and its gradient, -> the products they are made of

    PyTensor does it, too, but too late to be seen, and never to the gradient.
    """
    if not node.op.optimized or not any(is_gathered(x) for x in node.inputs):
        return None
    users = [client for client, _ in fgraph.clients[node.outputs[0]]]
    results = {}
    for inlined in dict.fromkeys([node, *(x for x in users if is_gradient(x, node))]):
        for old, new in zip(inlined.outputs, inline_ofg_node(inlined), strict=True):
            copy_stack_trace(old, new)
            results[old] = old.type.filter_variable(new, allow_convert=True)
    return results


def is_gathered(x: TensorVariable) -> bool:
    """Whether a variable is gathered blocks, with its axes in some order."""
    while x.owner is not None and isinstance(x.owner.op, DimShuffle):
        x = x.owner.inputs[0]
    return x.owner is not None and isinstance(x.owner.op, GATHERS) and indexes_blocks(x.owner)


def is_gradient(node: Apply, einsum: Apply) -> bool:
    """Whether a node is a function of an einsum's inputs, its result, and a cotangent of that."""
    given = [*einsum.inputs, *einsum.outputs]
    return type(node.op) is OpFromGraph and node.inputs[: len(given)] == given


@node_rewriter(GATHERS)
def local_gathered_product(fgraph: FunctionGraph, node: Apply) -> dict[Variable, Variable] | None:
    """row @ W[i, j] -> gemv(zeros, W, row, i, j)

    For all products with the gathered blocks, if nothing else uses these: each time a gather less
    is used.
    """
    if not indexes_blocks(node) or not are_of_one_length(fgraph, indices_of(node)):
        return None
    products = products_with(fgraph, node.outputs[0])
    if not products:
        return None
    W, *indices = node.inputs
    blocks = Blocks(with_two_block_axes(W), *both_indices(fgraph, indices))
    results = {}
    for dot in products:
        try:
            result = computed(fgraph, dot, W, blocks)
        except (IndexError, ValueError):  # of sizes or constants: raised when the graph runs
            return None
        [old] = dot.node.outputs
        copy_stack_trace(old, result)
        results[old] = old.type.filter_variable(result, allow_convert=True)
    return results


def indexes_blocks(node: Apply) -> bool:
    """Whether vectors, one for each leading axis of an array, index matrices in it."""
    array, indices = node.inputs[0], indices_of(node)
    return (
        all(isinstance(entry, int) for entry in getattr(node.op, "idx_list", (0,)))
        and len(indices) in (1, 2)
        and array.type.ndim == len(indices) + 2
        and array.type.dtype in ("float32", "float64")
        and all(x.type.ndim == 1 and x.type.dtype in (*int_dtypes, *uint_dtypes) for x in indices)
        and len({x.type.broadcastable for x in indices}) == 1
    )


def are_of_one_length(fgraph: FunctionGraph, indices: Sequence[TensorVariable]) -> bool:
    """Whether no index may be repeated for the other."""
    first, *others = indices
    return all(same_shape(fgraph, first, other, 0, 0) for other in others)


def indices_of(node: Apply) -> list[TensorVariable]:
    """What a node gathers by, or writes by."""
    return node.inputs[2 if isinstance(node.op, WRITES) else 1 :]


def with_two_block_axes(blocks: TensorVariable) -> TensorVariable:
    return blocks if blocks.type.ndim == 4 else blocks.dimshuffle("x", 0, 1, 2)


def both_indices(
    fgraph: FunctionGraph, indices: Sequence[TensorVariable]
) -> tuple[TensorVariable, TensorVariable]:
    """Indices of windows of one block, the first of zeros if it is left out."""
    *first, second = (index.dimshuffle(0, "x") for index in indices)
    return first[0] if first else zero_index(fgraph, indices[0]), second


def zero_index(fgraph: FunctionGraph, index: TensorVariable) -> TensorVariable:
    """Zeros for each example; those of the graph, if there are: PyTensor may not merge others.

    By the same indices it is known that the ops make the same checks.
    """
    [batch] = sizes_of(fgraph, index)
    zero = full((batch, 1), 0, "int64")
    clients = (client for client, _ in fgraph.clients.get(batch, ()))
    found = (x for client in clients for x in client.outputs if x.type == zero.type)
    return next((x for x in found if isinstance(x.owner.op, BlockFull) and is_zeros(x)), zero)


def products_with(
    fgraph: FunctionGraph, blocks: TensorVariable, is_transposed: bool = False
) -> list[Product] | None:
    """The products of gathered blocks and a row or column, None if there are other uses."""
    products: list[Product] = []
    for client, position in fgraph.clients[blocks]:
        if exchanges_last_two(client.op):
            others = products_with(fgraph, client.outputs[0], not is_transposed)
            if others is None:
                return None
            products += others
        elif is_batched_dot(client):
            other = client.inputs[1 - position]
            if other is blocks or not is_vector(other, 2 - position, blocks):
                return None
            products.append(Product(client, other, position == 1, is_transposed))
        else:
            return None
    return products


def is_vector(x: TensorVariable, axis: int, blocks: TensorVariable) -> bool:
    """Whether an operand has length 1 on an axis, and an example for each block."""
    one, other = x.type.broadcastable, blocks.type.broadcastable
    return one[axis] and one[0] == other[0] and x.type.dtype == blocks.type.dtype


def exchanges_last_two(op: Op) -> bool:
    return isinstance(op, DimShuffle) and op.new_order == (0, 2, 1)


def is_batched_dot(node: Apply) -> bool:
    """Whether a node multiplies matrices of one batch."""
    op = node.op
    is_dot = isinstance(op, BATCHED_DOTS) or (
        isinstance(op, Blockwise) and isinstance(op.core_op, Dot)
    )
    return is_dot and all(x.type.ndim == 3 for x in (*node.inputs, *node.outputs))


def computed(
    fgraph: FunctionGraph, dot: Product, gathered: TensorVariable, blocks: Blocks
) -> TensorVariable:
    """A product by the op, with the axes in the order that they had."""
    is_reversed = dot.is_transposed == dot.is_right
    row = dot.other if dot.is_right else dot.other.transpose(0, 2, 1)
    batch, *_ = sizes_of(fgraph, dot.other)
    *_, iSize, oSize = sizes_of(fgraph, gathered)
    o = zeros((batch, 1, iSize if is_reversed else oSize), row.dtype)
    W, inputIdx, outputIdx = blocks.transposed() if is_reversed else blocks
    result = sparse_block_gemv(o, W, row, inputIdx, outputIdx)
    copy_stack_trace(dot.node.outputs[0], result)
    return result if dot.is_right else result.transpose(0, 2, 1)


@node_rewriter(WRITES)
def local_gathered_gradient(fgraph: FunctionGraph, node: Apply) -> list[Variable] | None:
    """zeros[i, j].inc(column * row + ...) -> outer(... outer(zeros, column, row, i, j) ..., i, j)

    Unless these blocks are gathered: what else they are for stays as it is, gradient and all. Each
    time a write into gathered blocks less.
    """
    base, outers, *indices = node.inputs
    if not adds_to_zeros(node) or sole_client(fgraph, outers) is not node:
        return None
    if not are_of_one_length(fgraph, indices):
        return None
    if any(gathers_like(client, node) for client, _ in fgraph.clients[indices[0]]):
        return None
    terms = terms_of(outers)
    if terms is None or not all(fits(x, outers, indices[0], base) for x in chain(*terms)):
        return None
    result = zeros((1,) * (4 - base.type.ndim) + tuple(sizes_of(fgraph, base)), base.dtype)
    block_indices = both_indices(fgraph, indices)
    try:
        for x, y in terms:
            result = sparse_block_outer(result, x, y, *block_indices)
            copy_stack_trace(node.outputs[0], result)
    except (IndexError, ValueError):  # of sizes or constants: raised when the graph runs
        return None
    if base.type.ndim == 3:
        result = result.dimshuffle(1, 2, 3)
        copy_stack_trace(node.outputs[0], result)
    return [node.outputs[0].type.filter_variable(result, allow_convert=True)]


def adds_to_zeros(node: Apply) -> bool:
    op = node.op
    is_plain = not (op.inplace or op.set_instead_of_inc or getattr(op, "ignore_duplicates", False))
    return is_plain and indexes_blocks(node) and is_zeros(node.inputs[0])


def gathers_like(client: Apply, node: Apply) -> bool:
    """Whether a node gathers matrices by the indices by which another writes such."""
    return (
        isinstance(client.op, GATHERS)
        and indices_of(client) == indices_of(node)
        and client.outputs[0].type.shape == node.inputs[1].type.shape
    )


def fits(
    x: TensorVariable, outers: TensorVariable, index: TensorVariable, base: TensorVariable
) -> bool:
    """Whether vectors are neither cast nor broadcast to be written."""
    are_single = {y.type.broadcastable[0] for y in (x, outers, index)}
    return len(are_single) == 1 and x.type.dtype == outers.type.dtype == base.type.dtype


def terms_of(outers: TensorVariable) -> list[tuple[TensorVariable, TensorVariable]] | None:
    """The arrays (batch, 1, iSize) and (batch, 1, oSize) whose outer products are summed."""
    node = outers.owner
    if node is None or outers.type.ndim != 3:
        return None
    if exchanges_last_two(node.op):
        terms = terms_of(node.inputs[0])
        return None if terms is None else [(y, x) for x, y in terms]
    if is_elementwise(node, ps.Add, ps.Sub):
        parts = [terms for x in node.inputs if like(x, outers) and (terms := terms_of(x))]
        if len(parts) < len(node.inputs):
            return None
        if is_elementwise(node, ps.Sub):
            parts[1] = [(x, neg(y)) for x, y in parts[1]]
        return list(chain(*parts))
    if is_batched_dot(node):
        column, row = node.inputs
        is_outer = column.type.broadcastable[2] and row.type.broadcastable[1]
        return [(column.transpose(0, 2, 1), row)] if is_outer else None
    numerators, divisors = factors_of(outers)
    columns, rows = zip(*(split(factors) for factors in (numerators, divisors)), strict=True)
    if not all(x.type.broadcastable[2] for x in chain(*columns)) or not (columns[0] and rows[0]):
        return None
    return [(quotient(*columns).transpose(0, 2, 1), quotient(*rows))]


def factors_of(x: TensorVariable) -> tuple[list[TensorVariable], list[TensorVariable]]:
    """The factors and divisors of an array of matrices, as far as none of them is one."""
    node = x.owner
    is_matrices = not any(x.type.broadcastable[1:])
    if node is None or not is_matrices or not is_elementwise(node, ps.Mul, ps.TrueDiv, ps.Neg):
        return [x], []
    parts = [factors_of(y) for y in node.inputs]
    if is_elementwise(node, ps.TrueDiv):
        parts[1] = parts[1][::-1]
    numerators, divisors = (list(chain(*factors)) for factors in zip(*parts, strict=True))
    if is_elementwise(node, ps.Neg):
        numerators += [x.dimshuffle("x", "x", "x") for x in minus_one(node).factors]
    return numerators, divisors


def split(
    factors: Sequence[TensorVariable],
) -> tuple[list[TensorVariable], list[TensorVariable]]:
    """Columns, and what else there is: rows and scalars."""
    columns = [x for x in factors if not x.type.broadcastable[1]]
    return columns, [x for x in factors if x not in columns]


def quotient(
    numerators: Sequence[TensorVariable], divisors: Sequence[TensorVariable]
) -> TensorVariable:
    """The product of some variables over that of others."""
    above = product(numerators)
    return true_div(above, product(divisors)) if divisors else above


# All three on CPUs alone: array libraries make of a gather and a product what they make of the ops.
# Before 1, where PyTensor brings products into one form, however they were written.
register_pass(local_gathered_einsum, "inplace", position=0.9)
# Before what looks at the results: norms of gradients from 1.54 on, biases and steps.
register(local_gathered_product, "inplace", position=1.52)
register(local_gathered_gradient, "inplace", position=1.53)
