"""A rule over the blocks in use, read and written once: the step of an optimizer."""

from collections.abc import Iterator

import numpy as np
from pytensor.graph.basic import Apply, Constant, Variable
from pytensor.graph.fg import FunctionGraph
from pytensor.graph.replace import clone_replace
from pytensor.graph.rewriting.basic import copy_stack_trace, node_rewriter
from pytensor.graph.traversal import ancestors
from pytensor.scalar.basic import Composite, ScalarOp
from pytensor.tensor.basic import constant
from pytensor.tensor.elemwise import Elemwise
from pytensor.tensor.subtensor import AdvancedIncSubtensor, AdvancedSubtensor
from pytensor.tensor.variable import TensorConstant

from blocksparse_ops.gradient import SparseBlockGradient, SplitNumbers
from blocksparse_ops.rewrites.match import register_pass, sole_client
from blocksparse_ops.update_blocks import UpdateBlocks


@node_rewriter([Elemwise])
def local_update_blocks(fgraph: FunctionGraph, node: Apply) -> dict[Variable, Variable] | None:
    """array[blocks in use].set(f(array[blocks in use], ...)) -> UpdateBlocks(f)(array, ...)"""
    writes = [write for out in node.outputs for write in writes_of(fgraph, out)]
    blocks = blocks_of(writes[0]) if len(writes) == len(node.outputs) else None
    if blocks is None or any(blocks_of(write) != blocks for write in writes):
        return None
    if any(x.type.ndim != 3 for x in node.inputs):
        return None
    arrays = [write.inputs[0] for write in writes]
    if len(set(arrays)) < len(arrays) or not all(map(fills, writes)):
        return None
    if not {write.outputs[0] for write in writes}.isdisjoint(ancestors(arrays)):
        return None  # one writes into what another has written
    sources = []
    for x in node.inputs:
        read = x.owner
        is_read = read is not None and isinstance(read.op, AdvancedSubtensor)
        if is_read and blocks_of(read) == blocks and has_blocks_like(read.inputs[0], arrays[0]):
            x = read.inputs[0]
            if x not in arrays:
                arrays.append(x)
        sources.append(x)
    rule, constants = without_constants(node.op.scalar_op)
    sources += constants
    operands = [*arrays, *(x for x in dict.fromkeys(sources) if x not in arrays)]
    op = UpdateBlocks(rule, [operands.index(x) for x in sources], range(len(writes)), len(arrays))
    results = op(*blocks, *operands, return_list=True)
    for write, result in zip(writes, results, strict=True):
        copy_stack_trace([write.outputs[0], *node.outputs], result)
    return {write.outputs[0]: result for write, result in zip(writes, results, strict=True)}


def without_constants(rule: ScalarOp) -> tuple[ScalarOp, list[TensorConstant]]:
    """A rule with its constants as further arguments, and these.

    PyTensor writes those of single precision into C code as double ones.
    """
    if not isinstance(rule, Composite):
        return rule, []
    graph = rule.fgraph.unfreeze()
    arguments = {
        x: x.type() for x in graph.variables if isinstance(x, Constant) and x.dtype == "float32"
    }
    results = clone_replace(graph.outputs, arguments)
    constants = [constant(np.full((1, 1, 1), x.data)) for x in arguments]
    return Composite([*graph.inputs, *arguments.values()], results), constants


def writes_of(fgraph: FunctionGraph, variable: Variable) -> Iterator[Apply]:
    """The node that alone uses a variable, if it writes that into blocks of an array."""
    node = sole_client(fgraph, variable)
    is_write = node is not None and isinstance(node.op, AdvancedIncSubtensor)
    if is_write and node.op.set_instead_of_inc and node.inputs[1] is variable:
        yield node


def fills(write: Apply) -> bool:
    """Whether a node has a value for each element that it writes."""
    whole, values, *_ = write.inputs
    of_part = (False, *whole.type.broadcastable[2:])
    return values.type.ndim == 3 and values.type.broadcastable == of_part


def has_blocks_like(x: Variable, other: Variable) -> bool:
    """Whether no row or column of one's blocks is repeated for the other's."""
    return x.type.broadcastable[2:] == other.type.broadcastable[2:]


def blocks_of(node: Apply) -> list[Variable] | None:
    """The blocks in use that a node reads or writes, if it reads or writes such: each once."""
    first = 2 if isinstance(node.op, AdvancedIncSubtensor) else 1
    blocks, gradient = node.inputs[first:], node.inputs[-1].owner
    if tuple(node.op.idx_list) != (0, 1) or node.inputs[0].type.ndim != 4 or gradient is None:
        return None
    are_different = isinstance(gradient.op, SparseBlockGradient | SplitNumbers)
    return blocks if are_different and blocks == gradient.outputs[:2] else None


@node_rewriter([UpdateBlocks], inplace=True)
def local_inplace_update_blocks(fgraph: FunctionGraph, node: Apply) -> list[Variable] | None:
    """UpdateBlocks(f)(array, ...) -> UpdateBlocks(f)(array, ...) that writes into array"""
    if node.op.inplace:
        return None
    results = node.op.in_place()(*node.inputs, return_list=True)
    copy_stack_trace(node.outputs, results)
    return results


# After 49, where elementwise ops become one, and before 100, where PyTensor reads blocks in it.
register_pass(local_update_blocks, position=49.1)
register_pass(local_inplace_update_blocks, "inplace", position=50.2)
