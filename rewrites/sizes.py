"""Zeros of sizes that JAX reads off the arrays while it traces.

PyTensor computes ``x.shape[k]`` from the sizes of what `x` is made of. In JAX a number that is
computed is traced, and no size of an array may be.
"""

from pytensor.graph.basic import Apply, Constant, Variable
from pytensor.graph.fg import FunctionGraph
from pytensor.graph.rewriting.basic import copy_stack_trace, dfs_rewriter, node_rewriter
from pytensor.tensor.shape import Shape
from pytensor.tensor.subtensor import Subtensor, get_idx_list

from blocksparse_ops.rewrites.match import register_once
from blocksparse_ops.zeros import BlockFull, BlockZeros, SizeOf


@node_rewriter([BlockZeros, BlockFull])
def local_block_zeros_of_known_sizes(fgraph: FunctionGraph, node: Apply) -> list[Variable] | None:
    """zeros(x.shape[k], ...) -> zeros(SizeOf(k)(x), ...)"""
    value, *sizes = node.inputs
    known = [read_off(size) for size in sizes]
    if known == sizes:
        return None
    result = node.op(value, *known)
    copy_stack_trace(node.outputs[0], result)
    return [node.outputs[0].type.filter_variable(result, allow_convert=True)]


def read_off(size: Variable) -> Variable:
    """A size as it is read off the array whose it is, if it is one's."""
    if size.owner is None or not isinstance(size.owner.op, Subtensor):
        return size
    shape, *_ = size.owner.inputs
    [index] = get_idx_list(size.owner.inputs, size.owner.op.idx_list)
    is_of_array = shape.owner is not None and isinstance(shape.owner.op, Shape)
    if not is_of_array or not isinstance(index, Constant):
        return size
    return SizeOf(int(index.data))(shape.owner.inputs[0])


# Before PyTensor computes sizes, from 1 on. Not of the tag blocksparse: without it some graphs
# could not be compiled.
register_once(
    local_block_zeros_of_known_sizes.__name__,
    dfs_rewriter(local_block_zeros_of_known_sizes),
    "jax",
    position=0.01,
)
