"""What may raise runs before what writes into a shared variable: all of a step happens or none.

PyTensor orders nodes by what they need, and puts who reads a variable before who destroys it.
Between an update in place and a product whose index is out of range there is neither: without more
the first may be written when the second raises.
"""

from collections.abc import Iterable, Iterator

from pytensor.compile.ops import deep_copy_op
from pytensor.compile.sharedvalue import SharedVariable
from pytensor.graph.basic import Apply, Variable
from pytensor.graph.features import Feature
from pytensor.graph.fg import FunctionGraph
from pytensor.graph.op import Op
from pytensor.graph.replace import graph_replace
from pytensor.graph.rewriting.basic import GraphRewriter
from pytensor.graph.traversal import toposort_with_orderings, walk
from pytensor.raise_op import Assert
from pytensor.tensor.math import eq
from pytensor.tensor.shape import Shape_i

from blocksparse_ops.base import SparseBlockOp
from blocksparse_ops.bias import CheckedColumns
from blocksparse_ops.explain import inner_graphs
from blocksparse_ops.ops import SparseBlockOuter
from blocksparse_ops.part import SparseBlockOuterInPart
from blocksparse_ops.rewrites.checks import OUTERS, arguments_of, is_refused, unwritten
from blocksparse_ops.rewrites.match import register_once, same_shape


def may_raise(op: Op) -> bool:
    """Whether an op is one of ours that checks its arguments, or has one inside."""
    if isinstance(op, SparseBlockOp | SparseBlockOuterInPart | CheckedColumns):
        return True
    if hasattr(op, "core_op"):
        return may_raise(op.core_op)
    return any(may_raise(node.op) for graph in inner_graphs(op) for node in graph.apply_nodes)


def destroyers_of(fgraph: FunctionGraph, held: Iterable[Variable]) -> list[Apply]:
    """The nodes that write into what some variables hold, one after the other."""
    found: dict[Apply, None] = {}
    held = list(held)
    for variable in held:
        for node in fgraph.destroyers(variable):
            found[node] = None
            held += [node.outputs[k] for k in node.op.destroy_map]
    return list(found)


def first_destroyers_of(fgraph: FunctionGraph, variables: Iterable[Variable]) -> list[Apply]:
    """Of these the nodes that write into the variables themselves, and views of them."""
    return list(dict.fromkeys(node for x in variables for node in fgraph.destroyers(x)))


class Schedule:
    """Which nodes of a graph may raise before any of its inputs is written.

    Attributes
    ----------
    destroyers : list of Apply
        What writes into inputs.
    raising : set of Apply
        What may raise, and instead of what a lazy choice alone needs the choice itself: to order
        the former would compute what was not chosen.
    early : list of Apply
        Of these what needs nothing that the destroyers have computed or must run before.
    """

    def __init__(self, fgraph: FunctionGraph):
        self.destroyers = destroyers_of(fgraph, fgraph.inputs)
        self.raising: set[Apply] = set()
        self.early: list[Apply] = []
        if not self.destroyers:
            return
        orderings = fgraph.destroy_handler.orderings(fgraph)
        self.raising = raising_nodes(fgraph, orderings)
        late = set(self.destroyers)
        for node in toposort_with_orderings(fgraph.outputs, orderings=orderings):
            needed = (*(x.owner for x in node.inputs), *orderings.get(node, ()))
            if not late.isdisjoint(needed):
                late.add(node)
            elif node not in late and node in self.raising:
                self.early.append(node)


def raising_nodes(fgraph: FunctionGraph, orderings: dict[Apply, list[Apply]]) -> set[Apply]:
    """What may raise of the nodes that are computed whatever is chosen, choices among them."""
    anyway = set(
        walk(
            owners(fgraph.outputs),
            lambda node: [*owners(needed_anyway(node)), *orderings.get(node, ())],
        )
    )

    def raises_if_chosen(choice: Apply) -> bool:
        branches = walk(owners(choice.inputs[1:]), lambda node: owners(node.inputs))
        return any(may_raise(node.op) for node in branches if node not in anyway)

    return {
        node
        for node in anyway
        if may_raise(node.op) or (is_choice(node) and raises_if_chosen(node))
    }


def owners(variables: Iterable[Variable]) -> list[Apply]:
    return [x.owner for x in variables if x.owner is not None]


def needed_anyway(node: Apply) -> list[Variable]:
    return node.inputs[:1] if is_choice(node) else node.inputs


def is_choice(node: Apply) -> bool:
    """Whether a node is an `ifelse`, which needs one of its branches."""
    # By name, for the versions of PyTensor have it in different places.
    return type(node.op).__name__ == "IfElse"


class RaiseFirst(Feature):
    """Orders what may raise before what writes into an input, wherever the graph allows."""

    def orderings(self, fgraph: FunctionGraph) -> dict[Apply, list[Apply]]:
        schedule = Schedule(fgraph)
        return {node: list(schedule.early) for node in schedule.destroyers if schedule.early}


class BlockSparseRaiseFirst(GraphRewriter):
    """Have a graph raise before it writes.

    The order is PyTensor's to keep. What raises late, because it needs what a node in place
    computes besides a new value, has that node destroy a copy; and of several outers in place each
    is checked by one that adds nothing, unless another op makes the same checks early. Where that
    cannot be early all others destroy copies.
    """

    def add_requirements(self, fgraph: FunctionGraph) -> None:
        pass

    def apply(self, fgraph: FunctionGraph) -> None:
        is_ours = any(may_raise(node.op) for node in fgraph.apply_nodes)
        if not is_ours or not hasattr(fgraph, "destroyers"):
            return
        fgraph.attach_feature(RaiseFirst())
        shared = [x for x in fgraph.inputs if isinstance(x, SharedVariable)]
        destroyers = destroyers_of(fgraph, shared)
        late = raise_late(fgraph, destroyers)
        for node in destroyers if late else ():
            if not late.isdisjoint(held_up_by(fgraph, node)):
                destroy_copies(fgraph, node)
        if len(destroyers) > 1:
            schedule = Schedule(fgraph)
            for node in destroyers:
                if (
                    node in schedule.raising
                    and isinstance(node.op, OUTERS)
                    and not (is_refused(fgraph, node, schedule.early) or check_before(fgraph, node))
                ):
                    # It raises before it writes, but all others may have written.
                    for other in first_destroyers_of(fgraph, shared):
                        if other is not node:
                            destroy_copies(fgraph, other)


def raise_late(fgraph: FunctionGraph, destroyers: list[Apply]) -> set[Apply]:
    """What refuses what nothing refuses early. Of outers in place all checks are made early."""
    schedule = Schedule(fgraph)
    return {
        node
        for node in schedule.raising.difference(schedule.early)
        if not (isinstance(node.op, OUTERS) and node in destroyers)
        and not is_refused(fgraph, node, schedule.early)
    }


def held_up_by(fgraph: FunctionGraph, node: Apply) -> Iterator[Apply]:
    """What needs more of a node than a variable's new value, or must run after it for another
    reason: because it writes into what the node reads.

    Of a number, which costs nothing to copy, the new value counts, too.
    """
    updates = fgraph.update_mapping or {}
    new_values = {x for k, x in enumerate(fgraph.outputs) if k in updates}
    written = [node.outputs[k] for k in node.op.destroy_map]
    arrays = [x for x in written if x in new_values and getattr(x.type, "ndim", None) != 0]
    needed = [x for x in node.outputs if x not in arrays]
    return must_run_after(fgraph, node, needed)


def must_run_after(fgraph: FunctionGraph, node: Apply, needed: list[Variable]) -> Iterator[Apply]:
    """What must run after a node of which some outputs are needed, through whatever others."""
    waiting: dict[Apply, list[Apply]] = {}
    for later, others in fgraph.destroy_handler.orderings(fgraph).items():
        for other in others:
            waiting.setdefault(other, []).append(later)

    def after(one: Apply, outputs: list[Variable]) -> list[Apply]:
        users = [user for x in outputs for user, _ in fgraph.clients[x]]
        return users + waiting.get(one, [])

    return walk(after(node, needed), lambda later: after(later, later.outputs))


def destroy_copies(fgraph: FunctionGraph, node: Apply) -> None:
    """Have a node write into copies; the part into which it writes is one of the copy."""
    for [position] in node.op.destroy_map.values():
        whole = node.inputs[position]
        copies = {position: deep_copy_op(whole)}
        if isinstance(node.op, SparseBlockOuterInPart):
            part_position = position + 1
            part = node.inputs[part_position]
            [copies[part_position]] = graph_replace([part], {whole: copies[position]})
        for k, copy in copies.items():
            fgraph.change_node_input(node, k, copy, reason="raise_first")


def check_before(fgraph: FunctionGraph, outer: Apply) -> bool:
    """Have an outer that adds nothing make the checks of one in place.

    To blocks without columns, and, where it is not known that the sizes of rows agree, to blocks
    without rows. Returns False, and changes nothing, if these would run late, too.
    """
    blocks, x, y, xIdx, yIdx, alpha = arguments_of(outer)
    are_known = same_shape(fgraph, blocks, y, 3, 2)
    blocks = unwritten(blocks)
    op = SparseBlockOuter(padding_idx=outer.op.padding_idx)
    # By no scale of a graph, which may be ready too late.
    without_columns = op(blocks[:, :, :, :0], x, y[:, :, :0], xIdx, yIdx, 1)
    were_checked = [eq(Shape_i(3)(without_columns), 0)]
    if not are_known:
        without_rows = op(blocks[:, :, :0], x[:, :, :0], y, xIdx, yIdx, 1)
        were_checked.append(eq(Shape_i(2)(without_rows), 0))
    checked = Assert("blocks without columns or rows")(alpha, *were_checked)
    position = outer.inputs.index(alpha)
    fgraph.change_node_input(outer, position, checked, reason="raise_first")
    if not runs_early(fgraph, without_columns.owner):
        fgraph.change_node_input(outer, position, alpha, reason="raise_first")
        return False
    return True


def runs_early(fgraph: FunctionGraph, node: Apply) -> bool:
    try:
        fgraph.toposort()
    except ValueError:  # a cycle
        return False
    return node in Schedule(fgraph).early


# After what works in place, and before 100, where PyTensor fuses elementwise ops with others.
tags = ("fast_run", "inplace", "blocksparse")
register_once("block_sparse_raise_first", BlockSparseRaiseFirst(), *tags, position=99.9)
