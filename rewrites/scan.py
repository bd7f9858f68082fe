"""A gradient in the weights that is accumulated over the steps of a Scan, in place.

The gradient of a step is ``outer(zeros, ...)``, added to the sum so far. PyTensor pushes the zeros,
which no step changes, out of the loop: seen from inside they are an input like any other. And it
keeps two states of the sum, so that each step copies it whole.
"""

from collections.abc import Iterable
from dataclasses import replace

from pytensor.graph.basic import Apply, Constant, Variable
from pytensor.graph.fg import FunctionGraph
from pytensor.graph.replace import clone_replace
from pytensor.graph.rewriting.basic import copy_stack_trace, node_rewriter
from pytensor.graph.traversal import ancestors
from pytensor.scan.op import Scan
from pytensor.scan.rewriting.trace import scan_sit_sot_to_untraced
from pytensor.tensor.basic import expand_dims
from pytensor.tensor.subtensor import Subtensor, get_idx_list

from blocksparse_ops.ops import SparseBlockOuter
from blocksparse_ops.rewrites.match import register_pass
from blocksparse_ops.zeros import BlockZeros


@node_rewriter([Scan])
def local_scan_sparse_block_outer_zeros(
    fgraph: FunctionGraph, node: Apply
) -> list[Variable] | None:
    """Make the zeros that an outer starts from inside the loop, where they can be merged away."""
    op = node.op
    inner_inputs, inner_outputs = inner_graph(op)
    starts = {outer.inputs[0] for outer in outers_in(inner_outputs)}
    pushed_out = [
        (inside, outside.owner)
        for inside, outside in zip(
            op.inner_non_seqs(inner_inputs), op.outer_non_seqs(node.inputs), strict=True
        )
        if inside in starts and outside.owner and isinstance(outside.owner.op, BlockZeros)
    ]
    if not pushed_out:
        return None
    pulled_in, sizes_inside, sizes_outside = {}, [], []
    for inside, zeros in pushed_out:
        value, *shape = zeros.inputs
        sizes = [size.type() for size in shape]
        pulled_in[inside] = zeros.op(value, *sizes)
        sizes_inside += sizes
        sizes_outside += shape
    new_op = Scan(
        inner_inputs + sizes_inside,
        clone_replace(inner_outputs, replace=pulled_in),
        replace(op.info, n_non_seqs=op.info.n_non_seqs + len(sizes_inside)),
        mode=op.mode,
        profile=op.profile,
        truncate_gradient=op.truncate_gradient,
        name=op.name,
        allow_gc=op.allow_gc,
    )
    results = new_op(*node.inputs, *sizes_outside, return_list=True)
    copy_stack_trace(node.outputs, results)
    return results


@node_rewriter([Scan])
def local_scan_sparse_block_outer_state(
    fgraph: FunctionGraph, node: Apply
) -> dict[Variable, Variable] | None:
    """Keep one state of a sum of outers of which only the last is used: the loop may destroy it.

    PyTensor does so where it knows that there is at least one step.
    """
    op, inputs = node.op, list(node.inputs)
    first_in = 1 + op.info.n_seqs + op.info.n_mit_mot + op.info.n_mit_sot
    first_out = op.info.n_mit_mot + op.info.n_mit_sot
    reduced = False
    for k, state in enumerate(op.inner_sitsot_outs(op.inner_outputs)):
        trace = inputs[first_in + k]
        is_last_state = only_last_is_used(fgraph, node.outputs[first_out + k])
        if is_last_state and trace.type.shape[0] != 1 and outers_in([state]):
            inputs[first_in + k] = expand_dims(trace[0], 0)
            reduced = True
    if not reduced:
        return None
    with_one_state = op(*inputs, return_list=True)[0].owner
    # At once: where an output is preallocated, a loop could not run on a trace of one state.
    untraced = scan_sit_sot_to_untraced.transform(fgraph, with_one_state)
    results = [untraced[output] for output in with_one_state.outputs]
    copy_stack_trace(node.outputs, results)
    return {
        old: old.type.filter_variable(new, allow_convert=True)
        for old, new in zip(node.outputs, results, strict=True)
        if fgraph.clients[old]
    }


def only_last_is_used(fgraph: FunctionGraph, trace: Variable) -> bool:
    """Whether every use of a trace takes its last state."""
    indices = [
        get_idx_list(client.inputs, client.op.idx_list)[0]
        for client, _ in fgraph.clients[trace]
        if isinstance(client.op, Subtensor)
    ]
    return len(indices) == len(fgraph.clients[trace]) and all(
        isinstance(index, Constant) and index.data == -1 for index in indices
    )


def outers_in(variables: Iterable[Variable]) -> list[Apply]:
    return [
        variable.owner
        for variable in ancestors(variables)
        if variable.owner and isinstance(variable.owner.op, SparseBlockOuter)
    ]


def inner_graph(op: Scan) -> tuple[list[Variable], list[Variable]]:
    """The inputs and outputs of a Scan's inner graph, free to be built upon."""
    fgraph = op.fgraph.unfreeze() if hasattr(op.fgraph, "unfreeze") else op.fgraph
    return list(fgraph.inputs), list(fgraph.outputs)


# The zeros as soon as they have been pushed out, at 0.05. The states after PyTensor has decided
# how many to keep, at 1.612.
register_pass(local_scan_sparse_block_outer_zeros, position=0.06, ignore_newtrees=True)
register_pass(local_scan_sparse_block_outer_state, position=1.615, ignore_newtrees=True)
