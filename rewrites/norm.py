"""The norm of a gradient from the blocks in use: a step clipped by it touches only these."""

from collections.abc import Iterator
from math import prod
from typing import NamedTuple

from pytensor import scalar as ps
from pytensor.graph.basic import Apply, Variable
from pytensor.graph.fg import FunctionGraph
from pytensor.graph.rewriting.basic import copy_stack_trace, node_rewriter
from pytensor.graph.traversal import ancestors
from pytensor.tensor.basic import (
    cast,
    expand_dims,
    get_underlying_scalar_constant_value,
    join,
    switch,
)
from pytensor.tensor.extra_ops import SearchsortedOp, broadcast_to, searchsorted, unique
from pytensor.tensor.math import Sum, lt, sqr
from pytensor.tensor.variable import TensorVariable

from blocksparse_ops.ops import SparseBlockOuter, sparse_block_outer
from blocksparse_ops.rewrites.linear import linear_terms, sizes_of
from blocksparse_ops.rewrites.match import is_elementwise, register, sole_client
from blocksparse_ops.rewrites.update import LinearForm
from blocksparse_ops.zeros import full, is_zeros, zeros


@node_rewriter([SparseBlockOuter])
def local_sparse_block_outer_norm(
    fgraph: FunctionGraph, node: Apply
) -> dict[Variable, Variable] | None:
    """sum(outer(zeros, ...)**2) -> sum(outer(zeros of the blocks in use, ...)**2)

    For sums of outers in the same place, too. Each time a gradient has one use less.
    """
    if node.op.inplace or not is_zeros(node.inputs[0]) or is_of_numbered_blocks(node):
        return None
    for gradient in gradients_of(fgraph, node.outputs[0]):
        squares = squares_of(fgraph, gradient)
        sums = [x for x in (sum_of_all(fgraph, square) for square in squares) if x is not None]
        if sums:
            break
    else:
        return None
    form = LinearForm(fgraph, gradient)
    uses = uses_of(fgraph, form)
    if form.rest or not form.has_outer(node) or uses is None:
        return None
    squares = sqr(blocks_in_use(uses))
    results = {}
    for old in sums:
        new = Sum(dtype=old.op.dtype, acc_dtype=old.op.acc_dtype)(squares)
        copy_stack_trace([old.outputs[0], node.outputs[0]], new)
        results[old.outputs[0]] = old.outputs[0].type.filter_variable(new, allow_convert=True)
    return results


class Use(NamedTuple):
    """An outer product of a gradient: two sides, each of rows, an index and a number of blocks."""

    sides: tuple[tuple[TensorVariable, TensorVariable, TensorVariable], ...]
    scale: TensorVariable


def uses_of(fgraph: FunctionGraph, form: LinearForm) -> list[Use] | None:
    """The outers of a form, or None if they lie in different places but for exchanged axes."""
    uses, places = [], set()
    for scale, node, place in form.outers:
        _, x, y, xIdx, yIdx, alpha = node.inputs
        iBlocks, oBlocks, *_ = sizes_of(fgraph, node.outputs[0])
        sides = (x, xIdx, iBlocks), (y, yIdx, oBlocks)
        is_exchanged = place.is_rearranged and place.axes(4) == (1, 0, 3, 2)
        places.add(() if is_exchanged else place.key)
        uses.append(Use(sides[::-1] if is_exchanged else sides, scale.times(alpha)))
    return uses if len(places) == 1 else None


def is_of_numbered_blocks(node: Apply) -> bool:
    """Whether the blocks of an outer are some that were found to be in use."""
    return any(
        x.owner and isinstance(x.owner.op, SearchsortedOp) for x in ancestors([node.inputs[3]])
    )


def gradients_of(fgraph: FunctionGraph, variable: Variable) -> Iterator[Variable]:
    """An outer, and the linear forms in which it stands, up to one that has several uses."""
    yield variable
    while (client := sole_client(fgraph, variable)) is not None:
        if all(x is not variable for _, x, _ in linear_terms(client)):
            return
        variable = client.outputs[0]
        yield variable


def squares_of(fgraph: FunctionGraph, x: Variable) -> Iterator[Variable]:
    """What squares a variable, element by element."""
    for node in dict.fromkeys(client for client, _ in fgraph.clients[x]):
        if (
            is_elementwise(node, ps.Sqr)
            or (is_elementwise(node, ps.Mul) and node.inputs == [x, x])
            or (is_elementwise(node, ps.Pow) and is_two(node.inputs[1]))
        ):
            yield node.outputs[0]


def is_two(exponent: Variable) -> bool:
    value = get_underlying_scalar_constant_value(exponent, raise_not_constant=False)
    return not isinstance(value, Variable) and bool(value == 2)


def sum_of_all(fgraph: FunctionGraph, x: Variable) -> Apply | None:
    """The node that alone uses a variable, if it sums up all elements."""
    node = sole_client(fgraph, x)
    if node is None or not isinstance(node.op, Sum):
        return None
    return node if node.op.axis is None or len(node.op.axis) == x.type.ndim else None


def blocks_in_use(uses: list[Use]) -> TensorVariable:
    """The sums of all blocks that some outers add to, one after the other."""
    keys = [key_of(use) for use in uses]
    used = unique(join(0, *keys))
    (x, *_), (y, *_) = uses[0].sides
    blocks = zeros((used.shape[0], 1, x.shape[2], y.shape[2]), x.dtype)
    for use, key in zip(uses, keys, strict=True):
        number = searchsorted(used, key)[:, None]
        first = full((number.shape[0], 1), 0, "int64")
        left, right = rows_of(use)
        blocks = sparse_block_outer(blocks, left, right, number, first, use.scale)
    return blocks


def of_triples(left: TensorVariable, right: TensorVariable) -> Iterator[TensorVariable]:
    """What two windows hold, for each pair of their places."""
    windows = left.shape[0], left.shape[1], right.shape[1]
    for values, axis in ((left, 2), (right, 1)):
        sizes = [values.shape[k] for k in range(2, values.type.ndim)]
        pairs = broadcast_to(expand_dims(values, axis), (*windows, *sizes))
        yield pairs.reshape((prod(windows), *sizes), ndim=values.type.ndim - 1)


def rows_of(use: Use) -> Iterator[TensorVariable]:
    """The rows of both sides of each triple, as windows of one."""
    (x, *_), (y, *_) = use.sides
    return (rows[:, None] for rows in of_triples(x, y))


def key_of(use: Use) -> TensorVariable:
    """A number for each triple, the same for those of a block; another op finds what is wrong."""
    counted = []
    for _, index, blocks in use.sides:
        index = cast(index, "int64")
        counted.append(switch(lt(index, 0), index + blocks, index))
    i, j = of_triples(*counted)
    return i * use.sides[1][2] + j


# Where gradients are still used as they were written, before outers are added to the weights. On
# CPUs alone: the number of blocks in use is not known when the array libraries compile.
register(local_sparse_block_outer_norm, "inplace", position=1.54)
