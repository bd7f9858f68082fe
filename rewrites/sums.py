"""The sums that a term stands in, and which variables they alone use."""

from collections import Counter
from collections.abc import Iterator

from pytensor.graph.basic import Apply, Variable
from pytensor.graph.fg import FunctionGraph
from pytensor.tensor.elemwise import Elemwise
from pytensor.tensor.subtensor import IncSubtensor
from pytensor.tensor.variable import TensorVariable

from blocksparse_ops.rewrites.linear import Scale, Term, branches, linear_terms
from blocksparse_ops.rewrites.match import sole_client

# What stands in a sum more often waits until a sum within, if one holds all its uses, has been
# merged: each choice between two forms of one term doubles how often. So many nodes are looked at
# for one where all uses of a variable meet.
MOST_WAYS = 32


def sums_of(fgraph: FunctionGraph, variable: Variable) -> list[TensorVariable]:
    """The sums that a term stands in, each of which alone uses the one below, the largest first."""
    dtype, found = variable.dtype, []
    while (node := meeting_of_uses(fgraph, variable)) is not None:
        variable = node.outputs[0]
        is_sum = isinstance(node.op, Elemwise | IncSubtensor)
        if is_sum and variable.dtype == dtype:
            found.append(variable)
    return found[::-1]


def terms_below(node: Apply) -> list[Term]:
    """The terms of a node, or of either branch of a choice."""
    chosen = branches(node)
    return linear_terms(node) if chosen is None else [Term(Scale(), x) for x in chosen[1:]]


def meeting_of_uses(fgraph: FunctionGraph, variable: Variable) -> Apply | None:
    """The nearest node of which all that uses a variable is a term, or a term of terms."""
    above = nodes_above(fgraph, variable)
    if sole_client(fgraph, variable) is not None:
        return next(above, None)
    return next((node for node in above if variable in ways_down(fgraph, node.outputs[0])), None)


def nodes_above(fgraph: FunctionGraph, variable: Variable) -> Iterator[Apply]:
    """The nodes of which a variable is a term, or a term of terms, the nearest ones first."""
    reached = [variable]
    for x in reached:
        for node, _ in fgraph.clients[x]:
            if len(reached) > MOST_WAYS:
                return
            if all(term.variable is not x for term in terms_below(node)):
                continue
            if node.outputs[0] not in reached:
                reached.append(node.outputs[0])
                yield node


def ways_down(fgraph: FunctionGraph, total: Variable) -> dict[Variable, int]:
    """How often each variable that a sum alone uses, in terms and terms of terms, stands in it."""
    ways, uses = Counter({total: 1}), Counter[Variable]()
    found, complete = {}, [total]
    for x in complete:
        found[x] = ways[x]
        for term in terms_below(x.owner) if x.owner is not None else ():
            below = term.variable
            ways[below] += ways[x]
            uses[below] += 1
            is_complete = uses[below] == len(fgraph.clients.get(below, ()))
            if is_complete and ways[below] <= MOST_WAYS:
                complete.append(below)
    return found
