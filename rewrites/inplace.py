"""The ops in place, where their first argument may be destroyed."""

from pytensor.graph.basic import Apply, Variable
from pytensor.graph.fg import FunctionGraph
from pytensor.graph.rewriting.basic import copy_stack_trace, node_rewriter
from pytensor.tensor.basic import cast
from pytensor.tensor.elemwise import DimShuffle
from pytensor.tensor.shape import Reshape, SpecifyShape
from pytensor.tensor.subtensor import IncSubtensor

from blocksparse_ops.ops import SparseBlockGemv, SparseBlockOuter
from blocksparse_ops.part import SparseBlockOuterInPart
from blocksparse_ops.rewrites.linear import step_key
from blocksparse_ops.rewrites.match import register_pass, sole_client


def inplace_twin(node: Apply) -> list[Variable] | None:
    """Return the result of the same op, in place, or None if it is in place already."""
    if node.op.inplace:
        return None
    result = type(node.op)(inplace=True, padding_idx=node.op.padding_idx)(*node.inputs)
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


@node_rewriter([SparseBlockOuter], inplace=True)
def local_inplace_sparse_block_outer_in_part(
    fgraph: FunctionGraph, node: Apply
) -> dict[Variable, Variable] | None:
    """set_subtensor(whole[k], outer(whole[k], ...)) -> whole, written where whole[k] lies

    For a chain of outers, too. Between them and the part may stand what changes the order of axes,
    or reshapes all of it.
    """
    if node.op.inplace:
        return None
    ups, write = nodes_above(fgraph, node.outputs[0])
    if write is None:
        return None
    read, *below = nodes_below(fgraph, node)
    whole = write.inputs[0]
    is_same_part = step_key(write) == (read.op, *read.inputs[1:]) and read.inputs[0] is whole
    if not is_same_part or not are_undone(below, ups):
        return None
    shape = [cast(n.inputs[1], "int64") for n in below if isinstance(n.op, Reshape)]
    steps: list[Apply] = []
    for n in below:
        if not isinstance(n.op, SparseBlockOuter):
            steps.append(n)
            continue
        part = read.op(whole, *read.inputs[1:])
        for step in () if shape else steps:
            part = step.op(part, *step.inputs[1:])
        whole = SparseBlockOuterInPart(n.op.padding_idx)(whole, part, *n.inputs[1:], *shape)
        copy_stack_trace([n.outputs[0], write.outputs[0]], whole)
        # What was checked is so in the same part.
        steps = [step for step in steps if isinstance(step.op, DimShuffle)]
    return {write.outputs[0]: whole}


def nodes_above(fgraph: FunctionGraph, variable: Variable) -> tuple[list[Apply], Apply | None]:
    """The views that alone use a variable, and the node that writes the last into a part."""
    views: list[Apply] = []
    while (client := sole_client(fgraph, variable)) is not None:
        if isinstance(client.op, IncSubtensor):
            is_written = client.op.set_instead_of_inc and client.inputs[1] is variable
            return views, client if is_written else None
        if not isinstance(client.op, DimShuffle | Reshape) or client.inputs[0] is not variable:
            break
        views.append(client)
        variable = client.outputs[0]
    return views, None


def nodes_below(fgraph: FunctionGraph, node: Apply) -> list[Apply]:
    """Outers, each used by the next one alone, and what stands between them and what they add to.

    The first node is none of these.
    """
    nodes = [node]
    while (node := nodes[0].inputs[0].owner) is not None:
        nodes.insert(0, node)
        is_outer = isinstance(node.op, SparseBlockOuter) and not node.op.inplace
        if not (is_outer and sole_client(fgraph, node.outputs[0])) and not isinstance(
            node.op, DimShuffle | Reshape | SpecifyShape
        ):
            break
    return nodes


def are_undone(below: list[Apply], ups: list[Apply]) -> bool:
    """Whether views above outers give back what those below and between them are views of.

    Of a part that is reshaped all outers lie in that one shape, which nothing else checks.
    """
    downs = [n for n in below if not isinstance(n.op, SparseBlockOuter | SpecifyShape)]
    views = [*downs, *ups]
    if any(isinstance(view.op, Reshape) for view in views):
        others = [n for n in below if not isinstance(n.op, SparseBlockOuter)]
        are_first = others == downs == below[:1] and len(ups) == 1
        return are_first and all(isinstance(view.op, Reshape) for view in views)
    ndim = views[0].inputs[0].type.ndim if views else 0
    axes: list[int | str] = list(range(ndim))
    for view in views:
        axes = [axis if axis == "x" else axes[axis] for axis in view.op.new_order]
    return axes == list(range(ndim))


# The first before 50.1, where PyTensor writes into parts in place.
register_pass(local_inplace_sparse_block_outer_in_part, "inplace", position=50.05)
register_pass(local_inplace_sparse_block_gemv, "inplace", position=50.2)
register_pass(local_inplace_sparse_block_outer, "inplace", position=50.2)
