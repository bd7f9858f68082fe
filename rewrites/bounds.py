"""Gathers by a checked index stay in bounds where nothing can be raised.

MLX reads and writes past the end, and JAX may truncate an index of 64 bits to 32, which then names
another block.
"""

import pytensor.tensor as pt
from pytensor.compile import optdb
from pytensor.graph.basic import Apply, Variable
from pytensor.graph.fg import FunctionGraph
from pytensor.graph.rewriting.basic import dfs_rewriter, node_rewriter
from pytensor.tensor.subtensor import AdvancedIncSubtensor, AdvancedSubtensor
from pytensor.tensor.variable import TensorVariable

from blocksparse_ops.index import CheckBlockIndex


def is_inside(index: TensorVariable, size: TensorVariable) -> TensorVariable:
    """Where an index lies in [-size, size), compared as signed or unsigned as it is."""
    if index.dtype.startswith("u"):
        return pt.lt(index.astype("uint64"), size.astype("uint64"))
    index = index.astype("int64")
    return pt.and_(pt.ge(index, -size), pt.lt(index, size))


@node_rewriter([CheckBlockIndex])
def local_checked_gather_in_bounds(fgraph: FunctionGraph, node: Apply) -> dict[Variable, Variable]:
    """x[check(i)] -> x[j], and x[check(i)].inc(y) -> x[j].inc(z); for i out of range j, z are 0

    What is gathered there takes part in no result: a product is NaN for such an index.
    """
    (index,) = node.outputs
    replacements = {}
    for client, position in fgraph.clients[index]:
        if not isinstance(client.op, AdvancedSubtensor | AdvancedIncSubtensor):
            continue
        inputs = list(client.inputs)
        # The index is of the first axis: a view of that check is all that sparse_block_dot makes.
        inside = is_inside(index, inputs[0].shape[0])
        inputs[position] = pt.switch(inside, index, pt.zeros((), index.dtype))
        if isinstance(client.op, AdvancedIncSubtensor):
            y = inputs[1]
            inputs[1] = pt.switch(pt.shape_padright(inside, y.ndim - index.ndim), y, y.zeros_like())
        replacements[client.outputs[0]] = client.op(*inputs)
    return replacements


# Not of the tag blocksparse: without it a wrong index would read and write what is not ours.
if local_checked_gather_in_bounds.__name__ not in optdb.__db__:
    optdb.register(
        local_checked_gather_in_bounds.__name__,
        dfs_rewriter(local_checked_gather_in_bounds),
        "jax",
        "mlx",
        position=0.01,
    )
