"""The gradient in gathered blocks, as the op: no array holds an outer product for each example.

PyTensor makes of a product with ``W[i, j]`` an array of batch * iSize * oSize outer products, and
adds it to zeros.
"""

from collections.abc import Callable, Sequence
from itertools import chain
from typing import NamedTuple

from pytensor import scalar as ps
from pytensor.graph.basic import Apply, Constant, Variable
from pytensor.graph.fg import FunctionGraph
from pytensor.graph.rewriting.basic import copy_stack_trace, node_rewriter
from pytensor.tensor.basic import cast
from pytensor.tensor.math import neg, true_div
from pytensor.tensor.shape import SpecifyShape
from pytensor.tensor.type import continuous_dtypes, discrete_dtypes
from pytensor.tensor.variable import TensorVariable

from blocksparse_ops.ops import sparse_block_outer
from blocksparse_ops.rewrites.bias import GATHERS
from blocksparse_ops.rewrites.gathered import is_batched_dot
from blocksparse_ops.rewrites.gathering import (
    WRITES,
    Axes,
    Gather,
    LeftAlone,
    are_of_sides,
    arguments_of,
    beside,
    check_lengths,
    gather_of,
    is_permutation,
    need_many_for_sums,
    with_axes,
)
from blocksparse_ops.rewrites.linear import minus_one, product, sizes_of
from blocksparse_ops.rewrites.match import is_elementwise, like, register, sole_client
from blocksparse_ops.signature import check_range
from blocksparse_ops.zeros import is_zeros, zeros


class Factors(NamedTuple):
    """Variables whose product, over that of others, is an array."""

    above: Sequence[TensorVariable]
    below: Sequence[TensorVariable] = ()

    def those(self, wanted: Callable[[TensorVariable], bool]) -> "Factors":
        return Factors(*([x for x in part if wanted(x)] for part in self))

    def times(self, other: "Factors") -> "Factors":
        return Factors(*([*one, *more] for one, more in zip(self, other, strict=True)))

    def with_axes(self, order: Sequence[int]) -> "Factors":
        return Factors(*([with_axes(x, order) for x in part] for part in self))

    def of_dtype(self, dtype: str) -> "Factors":
        """Integers among factors of floats, which by themselves would overflow."""
        if dtype not in continuous_dtypes:
            return self
        floats = (
            [x if x.dtype in continuous_dtypes else cast(x, dtype) for x in part] for part in self
        )
        return Factors(*floats)

    def differ_along(self, axis: int) -> bool:
        return any(differs_along(x, axis) for x in chain(*self))

    def variable(self) -> TensorVariable:
        above = product(self.above)
        return true_div(above, product(self.below)) if self.below else above


def differs_along(x: TensorVariable, axis: int) -> bool:
    return not x.type.broadcastable[axis]


@node_rewriter(WRITES)
def local_gathered_gradient(fgraph: FunctionGraph, node: Apply) -> list[Variable] | None:
    """zeros[i, j].inc(column * row + ...) -> outer(... outer(zeros, column, row, i, j) ..., i, j)

    Unless these blocks are gathered: what else they are for stays as it is, gradient and all. Each
    time a write into gathered blocks less.
    """
    return by_the_op(fgraph, node, block_ndim=2)


@node_rewriter(WRITES)
def local_gathered_gradient_in_rows(fgraph: FunctionGraph, node: Apply) -> list[Variable] | None:
    """zeros[i].inc(scale * row) -> outer(zeros, scale, row, i, 0), where C++ is compiled

    In Numba PyTensor fuses the product and the write.
    """
    return by_the_op(fgraph, node, block_ndim=1)


@node_rewriter(WRITES)
def local_gathered_gradient_in_jax(fgraph: FunctionGraph, node: Apply) -> list[Variable] | None:
    """The same of matrices, where JAX would not make all outer products at once."""
    return by_the_op(fgraph, node, block_ndim=2, check_gain=need_many_for_sums)


def by_the_op(
    fgraph: FunctionGraph,
    node: Apply,
    block_ndim: int,
    check_gain: Callable[[Gather, TensorVariable], None] | None = None,
) -> list[Variable] | None:
    base, outers, *_ = node.inputs
    try:
        gather = gather_of(node)
        if gather.block_ndim != block_ndim:
            return None
        if check_gain is not None:
            check_gain(gather, outers)
            check_constants_name_blocks(gather)
        check_write(fgraph, node, gather)
        terms = [outer_product(gather, x) for x in terms_of(outers, gather)]
        result = base
        for axes, x, y in terms:
            result = added(fgraph, gather, result, axes, x, y)
            copy_stack_trace(node.outputs[0], result)
    except (LeftAlone, IndexError, ValueError):  # of sizes or constants: raised when the graph runs
        return None
    return [node.outputs[0].type.filter_variable(result, allow_convert=True)]


def check_constants_name_blocks(gather: Gather) -> None:
    """Raise an IndexError where JAX leaves out what is added, and the op raises when compiled."""
    for index, blocks in zip(gather.indices, gather.array.type.shape, strict=False):
        if isinstance(index, Constant):
            check_range("an index that is a constant", index.data, "the blocks", blocks)


def check_write(fgraph: FunctionGraph, node: Apply, gather: Gather) -> None:
    """Raise LeftAlone unless an array as large as the gathered blocks is added to zeros."""
    op, (base, outers, *_) = node.op, node.inputs
    if op.inplace or op.set_instead_of_inc or getattr(op, "ignore_duplicates", False):
        raise LeftAlone("blocks are set, not added")
    if not is_zeros(base):
        raise LeftAlone("blocks are added to others than zeros")
    check_lengths(fgraph, gather)
    if sole_client(fgraph, outers) is not node:
        raise LeftAlone("what is added has another use")
    places = [all(x.type.broadcastable[k] for x in gather.indices) for k in range(gather.places)]
    block = base.type.broadcastable[len(gather.indices) :]
    if outers.type.broadcastable != (*places, *block) or outers.type.dtype != base.type.dtype:
        raise LeftAlone("what is added is cast or repeated")
    if any(gathers_like(client, node) for client, _ in fgraph.clients[gather.indices[0]]):
        raise LeftAlone("the blocks that are added to are gathered, and that is left alone")


def gathers_like(client: Apply, node: Apply) -> bool:
    """Whether a node gathers blocks by the indices by which another writes such."""
    return (
        isinstance(client.op, GATHERS)
        and client.inputs[1:] == node.inputs[2:]
        and client.outputs[0].type.shape == node.inputs[1].type.shape
    )


def terms_of(outers: TensorVariable, gather: Gather) -> list[Factors]:
    """The outer products whose sum is an array of blocks."""
    node = outers.owner
    if node is None:
        raise LeftAlone("what is added are no outer products")
    if is_check(node):
        return terms_of(node.inputs[0], gather)
    if is_permutation(node):
        terms = terms_of(node.inputs[0], gather)
        return [factors.with_axes(node.op.new_order) for factors in terms]
    if not is_elementwise(node, ps.Add, ps.Sub):
        factors = factors_of(outers, range(gather.places, gather.ndim))
        return [factors.of_dtype(gather.array.dtype)]
    if not all(like(x, outers) for x in node.inputs):
        raise LeftAlone("a term of what is added is cast or repeated")
    parts = [terms_of(x, gather) for x in node.inputs]
    if is_elementwise(node, ps.Sub):
        if any(x.dtype != outers.dtype for (x, *_), _ in parts[1] if x.dtype in discrete_dtypes):
            raise LeftAlone("what is subtracted cannot be negative")
        parts[1] = [Factors([neg(x), *others], below) for (x, *others), below in parts[1]]
    return list(chain(*parts))


def is_check(node: Apply) -> bool:
    """Whether a node checks sizes, as the op does, and tells of none that it is 1."""
    [out] = node.outputs
    is_specified = isinstance(node.op, SpecifyShape)
    return is_specified and node.inputs[0].type.broadcastable == out.type.broadcastable


def factors_of(x: TensorVariable, block: Sequence[int]) -> Factors:
    """The factors of an array of blocks, as far as none of them is one: of a dot, the operands."""
    node = x.owner
    if node is None or not all(differs_along(x, axis) for axis in block):
        return Factors([x])
    if is_check(node):
        return factors_of(node.inputs[0], block)
    if is_permutation(node):
        order = node.op.new_order
        return factors_of(node.inputs[0], [order[axis] for axis in block]).with_axes(order)
    if is_batched_dot(node):
        one, other = node.inputs
        is_outer = not differs_along(one, -1) and not differs_along(other, -2)
        return Factors(node.inputs if is_outer else [x])
    if not is_elementwise(node, ps.Mul, ps.TrueDiv, ps.Neg):
        return Factors([x])
    parts = [factors_of(y, block) for y in node.inputs]
    if is_elementwise(node, ps.TrueDiv):
        parts[1] = Factors(*parts[1][::-1])
    above, below = (list(chain(*part)) for part in zip(*parts, strict=True))
    if is_elementwise(node, ps.Neg):
        above += [y.dimshuffle(["x"] * x.type.ndim) for y in minus_one(node).factors]
    return Factors(above, below)


def outer_product(gather: Gather, factors: Factors) -> tuple[Axes, TensorVariable, TensorVariable]:
    """The roles of the axes, and the two sides with these."""
    x, y, axes = sides_of(gather, factors)
    if not (x.above and y.above):
        raise LeftAlone("what is added are no outer products")
    places = range(gather.places)
    inputs, outputs = (
        [k for k in places if one.differ_along(k) and not other.differ_along(k)]
        for one, other in ((x, y), (y, x))
    )
    examples = tuple(k for k in places if k not in (*inputs, *outputs))
    if not examples or len(inputs) > 1 or len(outputs) > 1:
        raise LeftAlone("two axes have the same part in the product")
    axes = axes._replace(
        examples=examples,
        inputs=inputs[0] if inputs else None,
        outputs=outputs[0] if outputs else None,
    )
    if not are_of_sides(gather, axes.inputs, axes.outputs):
        raise LeftAlone("an index of one window has two")
    return axes, x.variable(), y.variable()


def sides_of(gather: Gather, factors: Factors) -> tuple[Factors, Factors, Axes]:
    """What stands for rows and for columns, and which axis of a block each is."""
    first, last = gather.places, gather.ndim - 1
    rows = factors.those(lambda x: differs_along(x, first))
    columns = factors.those(lambda x: differs_along(x, last)) if last > first else Factors([])
    rest = factors.those(lambda x: not differs_along(x, first) and not differs_along(x, last))
    if last == first:
        if any(rest.differ_along(k) and not rows.differ_along(k) for k in range(first)):
            return rest, rows, Axes((), None, None, None, first)
        return rows, rest, Axes((), None, None, first, None)
    if any(differs_along(x, last) for x in chain(*rows)):
        raise LeftAlone("what is added are no outer products")
    belongs_to_rows = not rows.above or any(
        rest.differ_along(k) and not columns.differ_along(k) for k in range(first)
    )
    if belongs_to_rows and columns.above:
        rows = rows.times(rest)
    else:
        columns = columns.times(rest)
    return rows, columns, Axes((), None, None, first, last)


def added(
    fgraph: FunctionGraph,
    gather: Gather,
    blocks: TensorVariable,
    axes: Axes,
    x: TensorVariable,
    y: TensorVariable,
) -> TensorVariable:
    """The blocks, of zeros or of a term before, with the outer products added."""
    order, *indices = arguments_of(fgraph, gather, axes)
    if blocks is gather.array:
        sizes = sizes_of(fgraph, blocks)
        W = zeros([1 if axis == "x" else sizes[axis] for axis in order], blocks.dtype)
    else:
        W = with_axes(blocks, order)
    result = sparse_block_outer(
        W,
        beside(fgraph, gather, x, axes, axes.inputs, axes.rows),
        beside(fgraph, gather, y, axes, axes.outputs, axes.columns),
        *indices,
    )
    return with_axes(result, [order.index(axis) for axis in range(blocks.type.ndim)])


# Before what looks at the results: norms of gradients from 1.54 on, and steps.
register(local_gathered_gradient, "inplace", position=1.53)
register(local_gathered_gradient_in_rows, "inplace", "cxx_only", position=1.531)
register(local_gathered_gradient_in_jax, position=1.532, modes="jax")
