"""The product starts from the bias, and is written where the bias was gathered."""

import pytensor.tensor.subtensor as subtensor
from pytensor.graph.basic import Apply, Variable
from pytensor.graph.fg import FunctionGraph
from pytensor.graph.rewriting.basic import copy_stack_trace, node_rewriter
from pytensor.scalar import Add
from pytensor.tensor.elemwise import DimShuffle
from pytensor.tensor.math import add
from pytensor.tensor.shape import Reshape
from pytensor.tensor.variable import TensorVariable

from blocksparse_ops.ops import SparseBlockGemv
from blocksparse_ops.rewrites.linear import read_step
from blocksparse_ops.rewrites.match import (
    classes_in,
    is_elementwise,
    like,
    register,
    same_shape,
    sole_client,
    specified_like,
)
from blocksparse_ops.zeros import is_zeros

# PyTensor 3.0 has a class of its own for a gather by a vector.
GATHERS = classes_in(subtensor, "AdvancedSubtensor", "AdvancedSubtensor1")


@node_rewriter([SparseBlockGemv])
def local_sparse_block_gemv_bias(
    fgraph: FunctionGraph, node: Apply
) -> dict[Variable, Variable] | None:
    """gemv(zeros, ...) + c + rest -> gemv(c, ...) + rest

    For a `c` of the result's own type; the rest stays where elementwise fusion takes it for free.
    Between the product and the sum its axes may have been rearranged. Each time the sum has an
    addend less.
    """
    o, *others = node.inputs
    [product] = node.outputs
    steps, addition = rearranged_by(fgraph, product)
    if addition is None or not is_elementwise(addition, Add) or not is_zeros(o):
        return None
    product = steps[-1].outputs[0] if steps else product
    [total] = addition.outputs
    terms = [x for x in addition.inputs if x is not product]
    fitting = [x for x in terms if like(x, total)]
    if not like(product, total) or not fitting:
        return None
    c = min(fitting, key=lambda x: not is_fresh_gather(fgraph, x))
    terms.remove(c)
    for step in reversed(steps):
        c = read_step(fgraph, step, c)
    unknown = axes_not_checked(fgraph, c, *node.inputs)
    if unknown:
        c = specified_like(c, o, [axis if axis in unknown else None for axis in range(3)])
    result = node.op(c, *others)
    copy_stack_trace(total, result)
    for step in steps:
        result = step.op(result)
        copy_stack_trace(total, result)
    if terms:
        result = add(result, *terms)
        copy_stack_trace(total, result)
    return {total: total.type.filter_variable(result, allow_convert=True)}


def rearranged_by(fgraph: FunctionGraph, x: Variable) -> tuple[list[Apply], Apply | None]:
    """What puts the axes of a variable into another order, and the one node that then uses it."""
    steps: list[Apply] = []
    user = sole_client(fgraph, x)
    while user is not None and isinstance(user.op, DimShuffle):
        steps.append(user)
        user = sole_client(fgraph, user.outputs[0])
    return steps, user


def axes_not_checked(
    fgraph: FunctionGraph,
    c: TensorVariable,
    o: TensorVariable,
    W: TensorVariable,
    h: TensorVariable,
    inputIdx: TensorVariable,
    outputIdx: TensorVariable,
) -> list[int]:
    """The axes of zeros that may differ from `c` and from what the op checks them against."""
    sizes = ((h, 0), (outputIdx, 1), (W, 3))
    return [
        k
        for k, (x, axis) in enumerate(sizes)
        if not (same_shape(fgraph, o, c, k, k) or same_shape(fgraph, o, x, k, axis))
    ]


def is_fresh_gather(fgraph: FunctionGraph, variable: Variable) -> bool:
    """Whether a variable is a gather that nobody else uses: it can be written in place."""
    while sole_client(fgraph, variable) is not None and variable.owner is not None:
        if isinstance(variable.owner.op, GATHERS):
            return True
        if not isinstance(variable.owner.op, Reshape):
            return False
        variable = variable.owner.inputs[0]
    return False


register(local_sparse_block_gemv_bias)
