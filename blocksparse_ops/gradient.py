"""The gradient in block-sparse weights as what it is: the blocks in use, and a value for each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from pytensor import scalar as ps
from pytensor.gradient import DisconnectedType, disconnected_type, grad
from pytensor.graph.basic import Apply, Variable
from pytensor.graph.fg import FunctionGraph
from pytensor.graph.traversal import toposort
from pytensor.scalar import upcast
from pytensor.tensor.basic import cast, join
from pytensor.tensor.elemwise import DimShuffle, Elemwise
from pytensor.tensor.extra_ops import searchsorted, unique
from pytensor.tensor.math import maximum
from pytensor.tensor.shape import Shape_i, SpecifyShape
from pytensor.tensor.subtensor import set_subtensor
from pytensor.tensor.type import tensor
from pytensor.tensor.variable import TensorVariable

from blocksparse_ops import reference
from blocksparse_ops.arguments import TensorLike, as_tensor
from blocksparse_ops.base import SparseBlockOp
from blocksparse_ops.kernels.c import source
from blocksparse_ops.ops import SparseBlockGemv, sparse_block_outer
from blocksparse_ops.signature import GRADIENT
from blocksparse_ops.zeros import zeros, zeros_like


class SparseBlockGradient(SparseBlockOp):
    """The blocks that an outer product adds to, and what it adds to each

    ``inputBlock, outputBlock, o[inputBlock, outputBlock]`` of an outer product ``o`` on zeros, for
    each block that its indices name, in the order in which blocks lie; no other block is made.

    Notes
    -----
    A call takes what `SparseBlockOuter` takes, with the weights first, of which only the shape and
    the dtype matter, and raises what that raises. It returns block indices of shape (blocks in
    use,), twice, and values of shape (blocks in use, iSize, oSize).
    """

    __props__ = ()
    signature = GRADIENT

    def __init__(self) -> None:
        super().__init__()

    def make_node(
        self,
        W: TensorLike,
        x: TensorLike,
        y: TensorLike,
        xIdx: TensorLike,
        yIdx: TensorLike,
        alpha: TensorLike = 1,
    ) -> Apply:
        W = as_tensor(self.signature.op, "o", W)
        outer = super().make_node(W, x, y, xIdx, yIdx, alpha)
        [o] = outer.outputs
        block = tensor(dtype="int64", shape=(None,))
        values = tensor(dtype=o.dtype, shape=(None, *o.type.shape[2:]))
        # The weights as they are, for a cast would copy them all.
        return Apply(self, [W, *outer.inputs[1:]], [block, block.type(), values])

    def perform(
        self, node: Apply, inputs: Sequence[np.ndarray], output_storage: list[list]
    ) -> None:
        for storage, result in zip(output_storage, reference.gradient(*inputs), strict=True):
            storage[0] = result

    def do_constant_folding(self, fgraph: FunctionGraph, node: Apply) -> bool:
        return False

    def infer_shape(self, *args: Any) -> list[tuple]:
        *_, node, (_, x, y, *_) = args
        blocks = Shape_i(0)(node.outputs[0])
        return [(blocks,), (blocks,), (blocks, x[2], y[2])]

    def connection_pattern(self, node: Apply) -> list[list[bool]]:
        return [
            [False, False, name != "o" and name not in self.signature.indexed]
            for name in self.signature.names
        ]

    def pullback(
        self,
        inputs: Sequence[TensorVariable],
        outputs: Sequence[TensorVariable],
        cotangents: Sequence[TensorVariable],
    ) -> list[Variable]:
        W, *factors = inputs
        o = zeros_like(W.astype(outputs[2].dtype))
        g = BlockGradient(outputs[0], outputs[1], cotangents[2]).dense(W.shape)
        return [disconnected_type(), *sparse_block_outer.pullback([o, *factors], (), [g])[1:]]

    def pushforward(
        self,
        inputs: Sequence[TensorVariable],
        outputs: Sequence[TensorVariable],
        tangents: Sequence[Variable],
    ) -> list[Variable]:
        W, *factors = inputs
        terms = [
            self(W, *factors[:k], tangent, *factors[k + 1 :])[2]
            for k, (name, tangent) in enumerate(
                zip(self.signature.names[1:], tangents[1:], strict=True)
            )
            if name not in self.signature.indexed
            and not isinstance(tangent.type, DisconnectedType)
        ]
        values = sum(terms[1:], terms[0]) if terms else disconnected_type()
        return [disconnected_type(), disconnected_type(), values]

    def c_code(
        self, node: Apply, name: str, inputs: list[str], outputs: list[str], sub: dict[str, str]
    ) -> str:
        return source.call_gradient(node, name, inputs, outputs, sub["fail"])


sparse_block_gradient = SparseBlockGradient()


class BlockGradient(NamedTuple):
    """A gradient by the blocks in use, each once, in the order in which they lie.

    Attributes
    ----------
    inputBlock, outputBlock : (blocks in use,)
        Which blocks these are, counted from the start; of a table, zeros and the rows.
    values : (blocks in use, iSize, oSize)
        The gradient in each; of a table, `iSize` is 1.
    """

    inputBlock: TensorVariable
    outputBlock: TensorVariable
    values: TensorVariable

    def of(self, W: TensorVariable) -> TensorVariable:
        """``W[inputBlock, outputBlock]``: the blocks in use of what has the weights' shape."""
        return as_blocks(W)[self.inputBlock, self.outputBlock]

    def put(self, W: TensorVariable, values: TensorVariable) -> TensorVariable:
        """`W` with other values of the blocks in use, as `of` gives them.

        As the update of a shared variable it is in place.
        """
        result = set_subtensor(self.of(W), values)
        return result if W.type.ndim == 4 else result.dimshuffle(1, 3)

    def dense(self, shape: TensorLike) -> TensorVariable:
        """The same as an array of the weights' `shape`, four sizes or a table's two."""
        sizes = as_tensor("BlockGradient.dense", "shape", shape)
        ndim = sizes.type.shape[0] if sizes.type.ndim == 1 else None
        if ndim not in (2, 4):
            raise ValueError(
                f"BlockGradient.dense: shape is {shape}; expected the four sizes of weights, "
                "(iBlocks, oBlocks, iSize, oSize), or the two of a table, (rows, columns)"
            )
        return self.put(zeros((sizes[axis] for axis in range(ndim)), self.values.dtype), self.values)


def as_blocks(W: TensorVariable) -> TensorVariable:
    """Weights as they are, a table as weights of one row of blocks, each a row of the table."""
    return W if W.type.ndim == 4 else W.dimshuffle("x", 0, "x", 1)


def block_gradient(cost: TensorVariable, W: TensorVariable) -> BlockGradient:
    """``pytensor.grad(cost, W)[inputBlock, outputBlock]`` for the blocks in use

    Parameters
    ----------
    cost : ()
        What is differentiated.
    W : (iBlocks, oBlocks, iSize, oSize), or (rows, columns)
        Weights of block-sparse products, or a table: that of `sparse_block_take`, or a bias. Any
        number of products may use it, transposed as ``W.transpose(1, 0, 3, 2)``, too.

    Returns
    -------
    BlockGradient
        Which blocks are in use, and the gradient in each. They may be none.

    Raises
    ------
    TypeError
        If `W` has neither four nor two dimensions.
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
    if W.type.ndim not in (2, 4):
        raise TypeError(
            f"block_gradient: W has {W.type.ndim} dimensions; expected four, (iBlocks, oBlocks, "
            "iSize, oSize), or the two of a table, (rows, columns)"
        )
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
        _, _, h, inputIdx, outputIdx = use.product.owner.inputs
        sides = [(h, inputIdx), (g, outputIdx)]
        (x, xIdx), (y, yIdx) = reversed(sides) if use.is_transposed else sides
        gradients.append(BlockGradient(*sparse_block_gradient(weights, x, y, xIdx, yIdx)))
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
    straight = views[W] if W.type.ndim == 4 else ("x", 0, "x", 1)
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
    """Whether a node casts its input, or tells its shape, and that is all."""
    is_cast = isinstance(node.op, Elemwise) and isinstance(node.op.scalar_op, ps.Cast)
    return is_cast or isinstance(node.op, SpecifyShape)


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


def merged(gradients: Sequence[BlockGradient], oBlocks: TensorVariable) -> BlockGradient:
    """The sum of gradients in the same weights."""
    if len(gradients) == 1:
        return gradients[0]
    numbers = [gradient.inputBlock * oBlocks + gradient.outputBlock for gradient in gradients]
    used = unique(join(0, *numbers))
    shape = [gradients[0].values.shape[axis] for axis in (1, 2)]
    values = zeros((used.shape[0], *shape), upcast(*(each.values.dtype for each in gradients)))
    for number, gradient in zip(numbers, gradients, strict=True):
        part = values[searchsorted(used, number)]
        values = set_subtensor(part, part + gradient.values)
    blocks_of_row = maximum(oBlocks, 1)
    return BlockGradient(used // blocks_of_row, used % blocks_of_row, values)
