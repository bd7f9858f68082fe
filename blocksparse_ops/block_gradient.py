"""block_gradient: the gradient in block-sparse weights as what it is, the blocks in use."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from pytensor import scalar as ps
from pytensor.gradient import grad
from pytensor.graph.basic import Apply, Variable
from pytensor.graph.traversal import toposort
from pytensor.tensor.basic import cast
from pytensor.tensor.elemwise import DimShuffle, Elemwise
from pytensor.tensor.shape import SpecifyShape
from pytensor.tensor.type import float_dtypes
from pytensor.tensor.variable import TensorVariable

from blocksparse_ops.gradient import (
    AXES_OF_BLOCKS,
    SHAPES,
    BlockGradient,
    SparseBlockGradient,
    as_blocks,
    merged,
)
from blocksparse_ops.ops import SparseBlockGemv


def block_gradient(cost: TensorVariable, W: TensorVariable) -> BlockGradient:
    """``pytensor.grad(cost, W)[inputBlock, outputBlock]`` for the blocks in use

    Parameters
    ----------
    cost : ()
        What is differentiated.
    W : (iBlocks, oBlocks, iSize, oSize), (oBlocks, iSize, oSize), or (rows, columns)
        Weights of block-sparse products; ``W[None]`` of one input block, as in `h_softmax`; or a
        table: that of `sparse_block_take`, or a bias. Any number of products may use it,
        transposed as ``W.transpose(1, 0, 3, 2)``, too.

    Returns
    -------
    BlockGradient
        Which blocks are in use, and the gradient in each. They may be none.

    Raises
    ------
    TypeError
        If `W` is no variable, or has another number of dimensions.
    ValueError
        If the cost does not depend on `W`, or uses it for anything but products: its gradient is
        then dense, and `pytensor.grad` computes it.

    Notes
    -----
    Each block that an index names is in use, be its gradient zero. The values are summed over all
    uses, and are differentiable. PyTorch's ``Embedding(sparse=True)`` has such gradients for a
    table. How many blocks are in use depends on the indices: JAX, PyTorch and MLX, which compile
    for known shapes, refuse it.

    Examples
    --------
    A step of a rule of one's own that touches the blocks in use alone:

    >>> import numpy as np
    >>> import pytensor
    >>> from blocksparse_ops import block_gradient, sparse_block_dot
    >>> W = pytensor.shared(np.ones((3, 2, 4, 5)))
    >>> y = sparse_block_dot(W, np.ones((1, 1, 4)), [[2]], None, [[1]])
    >>> gradient = block_gradient((y**2).sum(), W)
    >>> step = np.sign(gradient.values.eval())
    >>> train = pytensor.function([], updates={W: gradient.put(W, gradient.of(W) - 0.1 * step)})
    >>> train()
    []
    >>> W.get_value()[:, :, 0, 0]
    array([[1. , 1. ],
           [1. , 1. ],
           [1. , 0.9]])
    """
    if not isinstance(W, TensorVariable):
        raise TypeError(
            f"block_gradient: W is {type(W)}; expected the tensor variable that the cost is of"
        )
    if W.type.ndim not in AXES_OF_BLOCKS:
        raise TypeError(f"block_gradient: W has {W.type.ndim} dimensions; expected {SHAPES}")
    uses = list(uses_in(cost, W))
    if not uses:
        raise ValueError(f"block_gradient: the cost has no block-sparse product of {W}")
    return gradient_of_uses(W, uses, grad(cost, [use.product for use in uses]))


def gradient_of_uses(
    W: TensorVariable, uses: Sequence[Use], cotangents: Sequence[TensorVariable]
) -> BlockGradient:
    """The gradient in weights from those in the products that use them."""
    weights = as_blocks(W)
    gradients = []
    for use, g in zip(uses, cotangents, strict=True):
        node = use.product.owner
        _, _, h, inputIdx, outputIdx = node.inputs
        sides = [(h, inputIdx), (g, outputIdx)]
        (x, xIdx), (y, yIdx) = reversed(sides) if use.is_transposed else sides
        op = SparseBlockGradient(node.op.padding_idx)
        gradients.append(BlockGradient(*op(weights, x, y, xIdx, yIdx)))
    gradient = merged(gradients, weights.shape[1])
    return gradient._replace(values=cast(gradient.values, W.dtype))


class Use(NamedTuple):
    """A product of the weights, and whether these are transposed there."""

    product: TensorVariable
    is_transposed: bool


def uses_in(cost: TensorVariable, W: TensorVariable) -> Iterator[Use]:
    """The products of the weights that a cost depends on.

    Raises
    ------
    ValueError
        If it depends on the weights by anything else.
    """
    views: dict[Variable, tuple] = {W: tuple(range(W.type.ndim))}  # to the order of their axes
    straight = AXES_OF_BLOCKS[W.type.ndim]
    transposed = tuple(straight[axis] for axis in (1, 0, 3, 2))
    for node, position in steps_to(cost):
        order = views.get(node.inputs[position])
        if order is None:
            continue
        [out, *_] = node.outputs
        if isinstance(node.op, DimShuffle):
            views[out] = tuple(axis if axis == "x" else order[axis] for axis in node.op.new_order)
        elif is_same_values(node):
            views[out] = order
        elif (
            isinstance(node.op, SparseBlockGemv)
            and position == node.op.signature.blocks
            and order in (straight, transposed)
        ):
            yield Use(out, order == transposed)
        else:
            raise ValueError(
                f"block_gradient: the cost uses {W} in {node.op}, not in block-sparse products "
                "alone, so that its gradient is dense: use pytensor.grad. Of weights, products "
                "may take W.transpose(1, 0, 3, 2), of stacked layers W[k] can be a W of its own"
            )


def is_same_values(node: Apply) -> bool:
    """Whether a node casts its input to other real numbers, or tells its shape, and that is all."""
    is_cast = isinstance(node.op, Elemwise) and isinstance(node.op.scalar_op, ps.Cast)
    is_real = node.outputs[0].type.dtype in float_dtypes
    return (is_cast and is_real) or isinstance(node.op, SpecifyShape)


def steps_to(cost: Variable) -> Iterator[tuple[Apply, int]]:
    """What a cost depends on: each node, and the position of each input that matters."""
    needed, steps = {cost}, []
    for node in reversed(list(toposort([cost]))):
        pattern = connection_pattern(node)
        for position, x in enumerate(node.inputs):
            if any(
                is_connected and out in needed
                for is_connected, out in zip(pattern[position], node.outputs, strict=True)
            ):
                needed.add(x)
                steps.append((node, position))
    return reversed(steps)


def connection_pattern(node: Apply) -> list[list[bool]]:
    """Which outputs depend on each input, as far as derivatives go."""
    if hasattr(node.op, "connection_pattern"):
        return node.op.connection_pattern(node)
    return [[True] * len(node.outputs)] * len(node.inputs)
