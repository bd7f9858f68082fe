"""What the merging rewrites share: looks at a graph, and their place in PyTensor's pipeline."""

from pytensor import config
from pytensor.compile import optdb
from pytensor.graph.rewriting.basic import EquilibriumGraphRewriter
from pytensor.tensor.elemwise import Elemwise


def sole_client(fgraph, variable):
    """The one node that uses a variable, or None if there are others."""
    clients = fgraph.clients[variable]
    return clients[0][0] if len(clients) == 1 else None


def is_elementwise(node, *scalar_ops):
    return isinstance(node.op, Elemwise) and isinstance(node.op.scalar_op, scalar_ops)


def like(x, y):
    """Whether an elementwise operation on the two neither casts nor broadcasts."""
    return x.type.dtype == y.type.dtype and x.type.broadcastable == y.type.broadcastable


def register(rewriter):
    """Run a merging rewriter to a fixpoint, after 1.51, where zeros are allocations, before 1.6."""
    name = rewriter.__name__
    if name not in optdb.__db__:
        fixpoint = EquilibriumGraphRewriter(
            [rewriter], max_use_ratio=config.optdb__max_use_ratio, ignore_newtrees=False
        )
        optdb.register(name, fixpoint, "fast_run", "blocksparse", position=1.55)
