"""The norm of a gradient from the blocks in use: a step clipped by it touches only these."""

from collections.abc import Iterator

import numpy as np
from pytensor import scalar as ps
from pytensor.graph.basic import Apply, Variable
from pytensor.graph.fg import FunctionGraph
from pytensor.graph.rewriting.basic import copy_stack_trace, node_rewriter
from pytensor.tensor.basic import constant, get_underlying_scalar_constant_value
from pytensor.tensor.math import Sum, sqr
from pytensor.tensor.variable import TensorVariable

from blocksparse_ops.gradient import BlockGradient, SparseBlockGradient, merged, squared_norm
from blocksparse_ops.ops import SparseBlockOuter
from blocksparse_ops.rewrites.linear import sizes_of
from blocksparse_ops.rewrites.match import is_elementwise, like, register, same_shape, sole_client
from blocksparse_ops.rewrites.sums import meeting_of_uses
from blocksparse_ops.rewrites.update import LinearForm
from blocksparse_ops.zeros import RepeatedZero, is_zeros


@node_rewriter([SparseBlockOuter])
def local_sparse_block_outer_norm(
    fgraph: FunctionGraph, node: Apply
) -> dict[Variable, Variable] | None:
    """sum(outer(zeros, ...)**2) -> sum(values of the blocks in use**2)

    For sums of outers in the same place, too. Each time a gradient has one use less.
    """
    if node.op.inplace or not is_zeros(node.inputs[0]):
        return None
    for gradient in gradients_of(fgraph, node.outputs[0]):
        squares = squares_of(fgraph, gradient)
        sums = [x for x in (sum_of_all(fgraph, square) for square in squares) if x is not None]
        if sums:
            break
    else:
        return None
    form = LinearForm(fgraph, gradient)
    if form.rest or not form.has_outer(node) or not are_of_one_shape(fgraph, form):
        return None
    in_use = blocks_in_use(fgraph, form)
    if in_use is None:
        return None
    results = {}
    for [old] in (x.outputs for x in sums):
        new = sum_of_squares(in_use.values, old.dtype)
        copy_stack_trace([old, node.outputs[0]], new)
        results[old] = old.type.filter_variable(new, allow_convert=True)
    return results


def sum_of_squares(values: TensorVariable, dtype: str) -> TensorVariable:
    """By our product, unless the sum is of another precision, in which it may be finite."""
    return squared_norm(values) if dtype == values.dtype else sqr(values).sum(dtype=dtype)


def are_of_one_shape(fgraph: FunctionGraph, form: LinearForm) -> bool:
    """Whether the outers and zeros of a sum are known to have one shape: nothing checks that."""
    terms = [(node.outputs[0], place) for _, node, place in form.outers] + form.zeros
    wholes = [(x, place.axes(x.type.ndim)) for x, place in terms if place.is_rearranged]
    parts = [(x, place.key) for x, place in terms if not place.is_rearranged]
    pattern = list(form.top.type.broadcastable)
    for x, axes in wholes:
        pairs = zip(wholes[0][1], axes, strict=True)
        if [x.type.broadcastable[axis] for axis in axes] != pattern:
            return False
        if not all(same_shape(fgraph, wholes[0][0], x, *pair) for pair in pairs):
            return False
    return all(key == parts[0][1] and same_shape(fgraph, parts[0][0], x) for x, key in parts)


def blocks_in_use(fgraph: FunctionGraph, form: LinearForm) -> BlockGradient | None:
    """The sum of outers, or None if they lie in different places but for exchanged axes."""
    gradients, places = [], set()
    for alpha, node, place in form.outers:
        _, x, y, xIdx, yIdx, _ = node.inputs
        sizes = sizes_of(fgraph, node.outputs[0])
        sides = [(x, xIdx), (y, yIdx)]
        is_exchanged = place.is_rearranged and place.axes(4) == (1, 0, 3, 2)
        if is_exchanged:
            sides, sizes = sides[::-1], [sizes[axis] for axis in (1, 0, 3, 2)]
        places.add(() if is_exchanged else place.key)
        (x, xIdx), (y, yIdx) = sides
        like = RepeatedZero()(constant(np.zeros((1,) * 4, x.dtype)), *sizes)
        op = SparseBlockGradient(node.op.padding_idx)
        gradients.append(BlockGradient(*op(like, x, y, xIdx, yIdx, alpha)))
    return merged(gradients, sizes[1]) if len(places) == 1 else None


def gradients_of(fgraph: FunctionGraph, variable: Variable) -> Iterator[Variable]:
    """An outer, and the linear forms in which it stands, up to one that has other uses."""
    yield variable
    while (node := meeting_of_uses(fgraph, variable)) is not None:
        variable = node.outputs[0]
        yield variable


def squares_of(fgraph: FunctionGraph, x: Variable) -> Iterator[Variable]:
    """What squares a variable, element by element."""
    for node in dict.fromkeys(client for client, _ in fgraph.clients[x]):
        is_power = is_elementwise(node, ps.Pow) and is_two(node.inputs[1])
        if (
            is_elementwise(node, ps.Sqr)
            or (is_elementwise(node, ps.Mul) and node.inputs == [x, x])
            or (is_power and like(x, node.outputs[0]))
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


# Where gradients are still used as they were written, before outers are added to the weights. On
# CPUs alone: the number of blocks in use is not known when the array libraries compile.
register(local_sparse_block_outer_norm, "inplace", position=1.54)
