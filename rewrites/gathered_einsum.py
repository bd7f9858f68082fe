"""An einsum of gathered blocks, as the products that it is made of."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from pytensor.compile.builders import OpFromGraph
from pytensor.graph.basic import Apply, Variable, equal_computations
from pytensor.graph.fg import FunctionGraph
from pytensor.graph.rewriting.basic import copy_stack_trace, node_rewriter
from pytensor.graph.traversal import applys_between
from pytensor.tensor.einsum import Einsum
from pytensor.tensor.elemwise import DimShuffle
from pytensor.tensor.math import matmul, mul
from pytensor.tensor.rewriting.ofg import inline_ofg_node
from pytensor.tensor.variable import TensorVariable

from blocksparse_ops.explain import keep_reason
from blocksparse_ops.rewrites.gathering import (
    Gather,
    LeftAlone,
    axes_of,
    gather_of,
    gathered,
    is_permutation,
    need_many_for_dots,
    with_axes,
)
from blocksparse_ops.rewrites.match import register_pass


class Labelled(NamedTuple):
    """A variable, and the letters that an einsum has for its axes."""

    variable: TensorVariable
    labels: str

    def along(self, labels: str) -> TensorVariable:
        """With these axes, of length 1 where it has none of that letter."""
        order = [self.labels.find(label) for label in labels]
        return with_axes(self.variable, ["x" if axis < 0 else axis for axis in order])

    def has(self, labels: str) -> set[int]:
        return {axis for axis, label in enumerate(labels) if label in self.labels}


@node_rewriter([Einsum])
def local_gathered_einsum(fgraph: FunctionGraph, node: Apply) -> dict[Variable, Variable] | None:
    """einsum(x, W[i, j]), and its gradient, -> the products they are made of

    PyTensor does it, too, but too late to be seen, never to the gradient, and to windows by way of
    reshapes.
    """
    return as_products(fgraph, node)


@node_rewriter([Einsum])
def local_gathered_einsum_in_jax(
    fgraph: FunctionGraph, node: Apply
) -> dict[Variable, Variable] | None:
    """The same, where JAX would not gather all blocks at once."""
    return as_products(fgraph, node, check_gain=need_many_for_dots)


def as_products(
    fgraph: FunctionGraph,
    node: Apply,
    check_gain: Callable[[Gather, TensorVariable], None] | None = None,
) -> dict[Variable, Variable] | None:
    sources = [gathered(x) for x in node.inputs]
    if not node.op.optimized or not any(sources):
        return None
    users = [client for client, _ in fgraph.clients[node.outputs[0]]]
    gradients = dict.fromkeys(x for x in users if is_gradient(x, node))
    try:
        [source] = [x for x in sources if x is not None]
        gather = gather_of(source)
        if check_gain is not None:
            check_gain(gather, source.outputs[0])
        is_of_matrices = gather.places == 1 and gather.block_ndim == 2
        pairs = inlined(node, *gradients) if is_of_matrices else written(node, gather, *gradients)
        results = {}
        given = {*node.inputs, *source.outputs, *(x for client in gradients for x in client.inputs)}
        for old, new in pairs:
            for made in applys_between(given, [new]):
                copy_stack_trace(old, made.outputs)
            results[old] = old.type.filter_variable(new, allow_convert=True)
    except LeftAlone as reason:
        keep_reason(fgraph, source.outputs[0], str(reason))
        return None
    except (IndexError, ValueError):  # of sizes or constants: raised when the graph runs
        return None
    return results


def is_gradient(node: Apply, einsum: Apply) -> bool:
    """Whether a node is a function of an einsum's inputs, its result, and a cotangent of that."""
    given = [*einsum.inputs, *einsum.outputs]
    return type(node.op) is OpFromGraph and node.inputs[: len(given)] == given


def inlined(*nodes: Apply) -> Iterator[tuple[Variable, Variable]]:
    for node in nodes:
        yield from zip(node.outputs, inline_ofg_node(node), strict=True)


def written(
    einsum: Apply, gather: Gather, *gradients: Apply
) -> Iterator[tuple[Variable, Variable]]:
    """A product of two operands and its gradients, as dots and sums of products."""
    if any(x.dtype != einsum.outputs[0].dtype for x in einsum.inputs):
        raise LeftAlone("dtypes differ")
    operands, result = operands_of(einsum)
    [position] = [k for k, x in enumerate(einsum.inputs) if gathered(x) is not None]
    blocks, other = as_gathered(operands[position]), operands[1 - position]
    y = Labelled(einsum.outputs[0], result)
    yield y.variable, contracted(gather, other, blocks, result)
    for node in gradients:
        cotangent = Labelled(node.inputs[-1], result)
        if not is_pullback(node, einsum):
            raise LeftAlone("a function of an einsum that is not its gradient")
        of_other = contracted(gather, cotangent, blocks, other.labels)
        labels = operands[position].labels
        of_blocks = mul(other.along(labels), cotangent.along(labels))
        both = (of_other, of_blocks) if position else (of_blocks, of_other)
        yield from zip(node.outputs, both, strict=True)


def as_gathered(x: Labelled) -> Labelled:
    """Blocks with the axes in the order in which they were gathered."""
    variable, labels = x
    while isinstance(variable.owner.op, DimShuffle):
        if not is_permutation(variable.owner):
            raise LeftAlone("axes are added to gathered blocks")
        order = variable.owner.op.new_order
        [variable] = variable.owner.inputs
        labels = "".join(labels[order.index(axis)] for axis in range(len(order)))
    return Labelled(variable, labels)


def operands_of(einsum: Apply) -> tuple[list[Labelled], str]:
    """The two operands of an einsum with their letters, and those of the result."""
    operands, result = einsum.op.subscripts.split("->")
    labels = operands.split(",")
    if len(labels) != 2 or "." in operands:
        raise LeftAlone("an einsum of other than two operands, or with an ellipsis")
    sizes = dict(zip(result, einsum.outputs[0].type.broadcastable, strict=True))
    for letters, x in zip(labels, einsum.inputs, strict=True):
        if len(set(letters)) < len(letters):
            raise LeftAlone("an einsum of a diagonal")
        for letter, is_one in zip(letters, x.type.broadcastable, strict=True):
            if sizes.setdefault(letter, is_one) != is_one:
                raise LeftAlone("an operand of an einsum is repeated")
    return [Labelled(x, y) for x, y in zip(einsum.inputs, labels, strict=True)], result


def is_pullback(node: Apply, einsum: Apply) -> bool:
    """Whether a node is what PyTensor computes an einsum's gradients by."""
    if len(node.inputs) != len(einsum.inputs) + 2:  # a derivative of that
        return False
    first, *_ = einsum.op.pullback(einsum.inputs, einsum.outputs, node.inputs[-1:])
    op = first.owner.op
    # PyTensor 3.0 gives a function ops of its own.
    return op is node.op or equal_computations(
        op.inner_outputs, node.op.inner_outputs, op.inner_inputs, node.op.inner_inputs
    )


def contracted(gather: Gather, other: Labelled, blocks: Labelled, result: str) -> TensorVariable:
    """The sum of products with the axes of these letters, if it is one of the op's."""
    labels = blocks.labels
    kept = {axis for axis, label in enumerate(labels) if label in result}
    axes = axes_of(gather, other.has(labels), set(range(len(labels))) - kept)
    if set(other.labels) - set(labels) or set(result) - set(labels):
        raise LeftAlone("several rows are multiplied by one block")
    x = other.along(labels)
    if axes.rows is None or axes.columns is None:
        return summed(Labelled(mul(x, blocks.variable), labels), result)
    pair = (blocks.variable, x.mT)[:: 1 if axes.is_reversed else -1]
    return summed(Labelled(matmul(*pair), labels.replace(labels[axes.rows], "1")), result)


def summed(x: Labelled, result: str) -> TensorVariable:
    """The sum over all axes whose letters are not the result's; those of length 1 are left out."""
    over = [axis for axis, label in enumerate(x.labels) if label not in result + "1"]
    total = x.variable.sum(over) if over else x.variable
    return Labelled(total, "".join(k for k in x.labels if k in result + "1")).along(result)


# Before 0.1, where PyTensor 3.0 takes the sizes of a result from how PyTensor would compute it, and
# before 1, where products are brought into one form, however they were written.
register_pass(local_gathered_einsum, "inplace", position=0.07)
register_pass(local_gathered_einsum_in_jax, position=0.071, modes="jax")
