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
    downs = [n for n in below if isinstance(n.op, DimShuffle | Reshape)]
    whole = write.inputs[0]
    is_same_part = step_key(write) == (read.op, *read.inputs[1:]) and read.inputs[0] is whole
    if not is_same_part or not are_inverse(ups, downs):
        return None
    is_reshaped = any(isinstance(view.op, Reshape) for view in downs)
    shape = [cast(view.inputs[1], "int64") for view in downs if is_reshaped]
    checks: list[Apply] = []
    for n in below:
        if isinstance(n.op, SpecifyShape):
            checks.append(n)
        elif isinstance(n.op, SparseBlockOuter):
            part = read.op(whole, *read.inputs[1:])
            for view in () if is_reshaped else (*downs, *checks):
                part = view.op(part, *view.inputs[1:])
            whole = SparseBlockOuterInPart(n.op.padding_idx)(whole, part, *n.inputs[1:], *shape)
            copy_stack_trace([n.outputs[0], write.outputs[0]], whole)
            checks = []
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


def are_inverse(ups: list[Apply], downs: list[Apply]) -> bool:
    """Whether views give back what others were made of."""
    if len(ups) != len(downs) or len(ups) > 1:
        return False
    if not ups:
        return True
    [up], [down] = ups, downs
    if isinstance(up.op, Reshape) or isinstance(down.op, Reshape):
        return type(up.op) is type(down.op)
    order = [down.op.new_order[axis] if axis != "x" else axis for axis in up.op.new_order]
    return order == list(range(down.inputs[0].type.ndim))


# The first before 50.1, where PyTensor writes into parts in place.
register_pass(local_inplace_sparse_block_outer_in_part, "inplace", position=50.05)
register_pass(local_inplace_sparse_block_gemv, "inplace", position=50.2)
register_pass(local_inplace_sparse_block_outer, "inplace", position=50.2)
