"""A product of zeros need not write them first and read them again."""

from pytensor.graph.basic import Apply, Variable
from pytensor.graph.fg import FunctionGraph
from pytensor.graph.rewriting.basic import copy_stack_trace, node_rewriter

from blocksparse_ops.ops import SparseBlockGemv
from blocksparse_ops.rewrites.match import register_pass
from blocksparse_ops.zeros import BlockZeros, RepeatedZero, is_zeros


@node_rewriter([SparseBlockGemv])
def local_sparse_block_gemv_of_repeated_zero(
    fgraph: FunctionGraph, node: Apply
) -> list[Variable] | None:
    """gemv(zeros, ...) -> gemv(a zero that is repeated, ...), which cannot be written in place

    A kernel then starts its sums from one value.
    """
    o, *others = node.inputs
    if o.owner is None or not isinstance(o.owner.op, BlockZeros) or not is_zeros(o):
        return None
    result = node.op(RepeatedZero()(*o.owner.inputs), *others)
    copy_stack_trace(node.outputs[0], result)
    return [node.outputs[0].type.filter_variable(result, allow_convert=True)]


# Right before what works in place, and where that does.
register_pass(local_sparse_block_gemv_of_repeated_zero, "inplace", position=50.15)
