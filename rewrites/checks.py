"""Which op refuses all that another one would: what is checked early need not be checked late."""

from typing import Any

from pytensor.graph.basic import Apply, Variable, equal_computations
from pytensor.graph.fg import FunctionGraph
from pytensor.graph.traversal import walk
from pytensor.tensor.elemwise import DimShuffle, Elemwise
from pytensor.tensor.shape import Reshape, SpecifyShape
from pytensor.tensor.subtensor import Subtensor

from blocksparse_ops.ops import SparseBlockGemv, SparseBlockOuter
from blocksparse_ops.part import SparseBlockOuterInPart
from blocksparse_ops.rewrites.match import like, same_shape

OUTERS = SparseBlockOuter, SparseBlockOuterInPart


def is_refused(fgraph: FunctionGraph, node: Apply, early: list[Apply]) -> bool:
    """Whether all that a product or an outer refuses is refused early."""
    if not isinstance(node.op, (SparseBlockGemv, *OUTERS)):
        return False
    arguments = arguments_of(node)
    return any(makes_checks_of(fgraph, other, arguments, node.op.padding_idx) for other in early)


def arguments_of(node: Apply) -> tuple[Any, ...]:
    """The blocks, the rows and the indices on both sides of a product or an outer, as an outer has
    them, and what scales them; of one in a part of an array the blocks are those of the part."""
    if isinstance(node.op, SparseBlockOuter):
        return tuple(node.inputs)
    if isinstance(node.op, SparseBlockGemv):
        o, W, h, *indices = node.inputs
        return W, h, o, *indices, None
    _, part, x, y, xIdx, yIdx, alpha, *shape = node.inputs
    blocks = part.reshape(*shape, ndim=4) if shape else part
    return blocks, x, y, xIdx, yIdx, alpha


def makes_checks_of(
    fgraph: FunctionGraph, other: Apply, arguments: tuple[Any, ...], padding_idx: int | None
) -> bool:
    """Whether a gemv over weights of the same shape refuses all that is wrong in these."""
    if not isinstance(other.op, SparseBlockGemv) or other.op.padding_idx != padding_idx:
        return False
    _, W, h, *indices = other.inputs
    blocks, x, y, *outer_indices, _ = arguments
    if indices == outer_indices:
        row, result, order = x, y, (0, 1, 2, 3)
    elif indices == outer_indices[::-1]:
        row, result, order = y, x, (1, 0, 3, 2)
    else:
        return False
    return (
        is_of_shape(fgraph, row, h)
        and (
            are_same(rearranged(unwritten(W), order), unwritten(blocks))
            or all(same_shape(fgraph, W, blocks, axis, k) for k, axis in enumerate(order))
        )
        and is_of_shape(fgraph, result, other.outputs[0])
    )


def are_same(x: Variable, y: Variable) -> bool:
    """Whether variables are the same view of an array."""
    return x is y or equal_computations([x], [y])


def is_of_shape(fgraph: FunctionGraph, x: Variable, other: Variable) -> bool:
    """Whether a variable is known to have another's shape."""
    return any(
        one is y or same_shape(fgraph, one, y)
        for one in of_one_shape(x)
        for y in of_one_shape(other)
    )


def of_one_shape(x: Variable) -> list[Variable]:
    """A variable and what elementwise ops, which keep it, have its shape from."""

    def sources(y: Variable) -> list[Variable]:
        if y.owner is not None and isinstance(y.owner.op, SpecifyShape):
            return y.owner.inputs[:1]
        if y.owner is not None and isinstance(y.owner.op, Elemwise):
            return [z for z in y.owner.inputs if like(z, y)]
        return []

    return list(walk([x], sources))


def rearranged(x: Variable, order: tuple[int, ...]) -> Variable:
    """`x.transpose(order)`; of what is `y.transpose(order)`, both exchanges of axes, `y`."""
    if x.owner is not None and isinstance(x.owner.op, DimShuffle) and x.owner.op.new_order == order:
        return x.owner.inputs[0]
    return x.transpose(order)


def unwritten(x: Variable) -> Any:
    """A variable as it is before anything is written into it."""
    node = x.owner
    if node is None:
        return x
    if isinstance(node.op, SpecifyShape):
        return unwritten(node.inputs[0])
    if isinstance(node.op, DimShuffle | Reshape | Subtensor):
        whole = unwritten(node.inputs[0])
        return x if whole is node.inputs[0] else node.op(whole, *node.inputs[1:])
    position = node.op.destroy_map.get(node.outputs.index(x))
    return x if position is None else unwritten(node.inputs[position[0]])
