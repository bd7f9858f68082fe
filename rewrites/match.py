"""What the merging rewrites share: queries of a graph, and their place in PyTensor's pipeline."""

from collections.abc import Iterable
from types import ModuleType
from typing import Any

from pytensor import config
from pytensor.compile import optdb
from pytensor.graph.basic import Apply, Variable
from pytensor.graph.fg import FunctionGraph
from pytensor.graph.rewriting.basic import (
    EquilibriumGraphRewriter,
    GraphRewriter,
    NodeRewriter,
    dfs_rewriter,
)
from pytensor.tensor.basic import Alloc
from pytensor.tensor.elemwise import Elemwise
from pytensor.tensor.shape import specify_shape
from pytensor.tensor.variable import TensorVariable


def classes_in(module: ModuleType, *names: str) -> tuple[type, ...]:
    """Those of these classes that this version of PyTensor has."""
    found = (getattr(module, name, None) for name in names)
    return tuple(x for x in found if isinstance(x, type))


def sole_client(fgraph: FunctionGraph, variable: Variable) -> Apply | None:
    """The one node that uses a variable, or None if there are others."""
    clients = fgraph.clients.get(variable, ())  # a constant may have been made of another
    return clients[0][0] if len(clients) == 1 else None


def is_elementwise(node: Apply, *scalar_ops: type) -> bool:
    return isinstance(node.op, Elemwise) and isinstance(node.op.scalar_op, scalar_ops)


def like(x: TensorVariable, y: TensorVariable) -> bool:
    """Whether an elementwise operation on the two neither casts nor broadcasts."""
    return x.type.dtype == y.type.dtype and x.type.broadcastable == y.type.broadcastable


def same_shape(
    fgraph: FunctionGraph,
    x: TensorVariable,
    y: TensorVariable,
    axis: int | None = None,
    other_axis: int | None = None,
) -> bool:
    """Whether two variables of a graph are known to have one shape, or one size on two axes."""
    one, other = (
        (x.type.shape, y.type.shape)
        if axis is None or other_axis is None
        else (x.type.shape[axis : axis + 1], y.type.shape[other_axis : other_axis + 1])
    )
    if one == other and None not in one:
        return True
    feature = getattr(fgraph, "shape_feature", None)
    try:
        return feature is not None and feature.same_shape(x, y, axis, other_axis)
    except KeyError:  # of a variable that is new to the graph
        return False


def specified_like(
    x: TensorVariable, zeros: TensorVariable, axes: Iterable[int | None]
) -> TensorVariable:
    """`x`, checked to have the sizes of zeros that it takes the place of.

    `axes` are the zeros' that stand for those of `x`, None for one that is not checked.
    """
    is_alloc = zeros.owner is not None and isinstance(zeros.owner.op, Alloc)
    sizes = zeros.owner.inputs[1:] if is_alloc else zeros.shape
    return specify_shape(x, [None if axis is None else sizes[axis] for axis in axes])


def register(
    rewriter: NodeRewriter, *tags: str, position: float = 1.55, modes: str = "fast_run"
) -> None:
    """Run a rewriter to a fixpoint, after 1.51, where zeros are allocations, and before 1.6.

    In all modes that optimize, or those of one library.
    """
    fixpoint = EquilibriumGraphRewriter(
        [rewriter], max_use_ratio=config.optdb__max_use_ratio, ignore_newtrees=False
    )
    register_once(rewriter.__name__, fixpoint, modes, "blocksparse", *tags, position=position)


def register_pass(
    rewriter: NodeRewriter, *tags: str, position: float, modes: str = "fast_run", **options: Any
) -> None:
    """Run a rewriter over a graph once."""
    over_all = dfs_rewriter(rewriter, **options)
    register_once(rewriter.__name__, over_all, modes, "blocksparse", *tags, position=position)


def register_once(name: str, rewriter: GraphRewriter, *tags: str, position: float) -> None:
    """Put a rewriter into PyTensor's pipeline, unless a second import would put it there again."""
    if name not in optdb.__db__:
        optdb.register(name, rewriter, *tags, position=position)
