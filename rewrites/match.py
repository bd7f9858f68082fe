"""What the merging rewrites share: queries of a graph, and their place in PyTensor's pipeline."""

from pytensor import config
from pytensor.compile import optdb
from pytensor.graph.rewriting.basic import EquilibriumGraphRewriter
from pytensor.tensor.basic import Alloc
from pytensor.tensor.elemwise import Elemwise
from pytensor.tensor.shape import specify_shape


def sole_client(fgraph, variable):
    """The one node that uses a variable, or None if there are others."""
    clients = fgraph.clients[variable]
    return clients[0][0] if len(clients) == 1 else None


def is_elementwise(node, *scalar_ops):
    return isinstance(node.op, Elemwise) and isinstance(node.op.scalar_op, scalar_ops)


def like(x, y):
    """Whether an elementwise operation on the two neither casts nor broadcasts."""
    return x.type.dtype == y.type.dtype and x.type.broadcastable == y.type.broadcastable


def same_shape(fgraph, x, y, axis=None, other_axis=None):
    """Whether two variables of a graph are known to have one shape, or one size on two axes."""
    one, other = (
        (x.type.shape, y.type.shape)
        if axis is None
        else (x.type.shape[axis : axis + 1], y.type.shape[other_axis : other_axis + 1])
    )
    if one == other and None not in one:
        return True
    feature = getattr(fgraph, "shape_feature", None)
    return feature is not None and feature.same_shape(x, y, axis, other_axis)


def specified_like(x, zeros, unknown=None):
    """`x`, checked to have the shape of zeros that it takes the place of.

    On the axes `unknown`; on all axes by default.
    """
    is_alloc = zeros.owner is not None and isinstance(zeros.owner.op, Alloc)
    sizes = zeros.owner.inputs[1:] if is_alloc else zeros.shape
    axes = range(zeros.type.ndim) if unknown is None else unknown
    return specify_shape(x, [sizes[axis] if axis in axes else None for axis in range(x.type.ndim)])


def register(rewriter):
    """Run a merging rewriter to a fixpoint, after 1.51, where zeros are allocations, before 1.6."""
    name = rewriter.__name__
    if name not in optdb.__db__:
        fixpoint = EquilibriumGraphRewriter(
            [rewriter], max_use_ratio=config.optdb__max_use_ratio, ignore_newtrees=False
        )
        optdb.register(name, fixpoint, "fast_run", "blocksparse", position=1.55)
