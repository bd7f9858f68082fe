"""The ops in place, where their first argument may be destroyed."""

from pytensor.compile import optdb
from pytensor.graph.basic import Apply, Variable
from pytensor.graph.fg import FunctionGraph
from pytensor.graph.rewriting.basic import copy_stack_trace, dfs_rewriter, node_rewriter

from blocksparse_ops.ops import SparseBlockGemv, SparseBlockOuter


def inplace_twin(node: Apply) -> list[Variable] | None:
    """Return the result of the same op, in place, or None if it is in place already."""
    if node.op.inplace:
        return None
    result = type(node.op)(inplace=True)(*node.inputs)
    copy_stack_trace(node.outputs[0], result)
    return [result]


@node_rewriter([SparseBlockGemv], inplace=True)
def local_inplace_sparse_block_gemv(fgraph: FunctionGraph, node: Apply) -> list[Variable] | None:
    """gemv(o, ...) -> gemv(o, ...) that writes its result into o"""
    return inplace_twin(node)


@node_rewriter([SparseBlockOuter], inplace=True)
def local_inplace_sparse_block_outer(fgraph: FunctionGraph, node: Apply) -> list[Variable] | None:
    """outer(o, ...) -> outer(o, ...) that writes its result into o"""
    return inplace_twin(node)


for rewriter in (local_inplace_sparse_block_gemv, local_inplace_sparse_block_outer):
    name, tags = rewriter.__name__, ("fast_run", "inplace", "blocksparse")
    if name not in optdb.__db__:
        optdb.register(name, dfs_rewriter(rewriter), *tags, position=50.2)
