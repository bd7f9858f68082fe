"""A gradient by the blocks in use: the op that makes it, sums of several, and its norm."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, ClassVar, NamedTuple

import numpy as np
from pytensor.gradient import DisconnectedType, disconnected_type
from pytensor.graph.basic import Apply, Variable
from pytensor.graph.fg import FunctionGraph
from pytensor.graph.op import Op
from pytensor.scalar import upcast
from pytensor.tensor.basic import arange, join
from pytensor.tensor.extra_ops import searchsorted, unique
from pytensor.tensor.math import sqr
from pytensor.tensor.shape import Shape_i
from pytensor.tensor.subtensor import set_subtensor
from pytensor.tensor.type import tensor
from pytensor.tensor.variable import TensorVariable

from blocksparse_ops import reference
from blocksparse_ops.arguments import TensorLike, as_tensor
from blocksparse_ops.base import SparseBlockOp
from blocksparse_ops.kernels.c import source
from blocksparse_ops.ops import both_ops, sparse_block_gemv
from blocksparse_ops.signature import GRADIENT
from blocksparse_ops.zeros import full, zeros, zeros_like


class SparseBlockGradient(SparseBlockOp):
    """The blocks that an outer product adds to, and what it adds to each

    ``inputBlock, outputBlock, o[inputBlock, outputBlock]`` of an outer product ``o`` on zeros, for
    each block that its indices name, in the order in which blocks lie; no other block is made.

    Notes
    -----
    A call takes what `SparseBlockOuter` takes, with the weights first, of which only the shape and
    the dtype matter, and raises what that raises. An index equal to `padding_idx` names no block.
    It returns block indices of shape (blocks in use,), twice, and values of shape (blocks in use,
    iSize, oSize).
    """

    __props__: ClassVar[tuple[str, ...]] = ("padding_idx",)
    signature = GRADIENT

    def __init__(self, padding_idx: int | None = None) -> None:
        super().__init__(padding_idx=padding_idx)

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
        results = reference.gradient(*inputs, padding_idx=self.padding_idx)
        for storage, result in zip(output_storage, results, strict=True):
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
        _, outer = both_ops(self.padding_idx)
        return [disconnected_type(), *outer.pullback([o, *factors], (), [g])[1:]]

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
            if name not in self.signature.indexed and not isinstance(tangent.type, DisconnectedType)
        ]
        values = sum(terms[1:], terms[0]) if terms else disconnected_type()
        return [disconnected_type(), disconnected_type(), values]

    def c_code(
        self, node: Apply, name: str, inputs: list[str], outputs: list[str], sub: dict[str, str]
    ) -> str:
        return source.call_gradient(node, name, inputs, outputs, sub["fail"])


class SplitNumbers(Op):
    """The two numbers, (i, j), of each block from one that all blocks are counted by

    ``number // oBlocks, number % oBlocks``. Numbers are each another.
    """

    __props__ = ()

    def make_node(self, numbers: TensorVariable, oBlocks: TensorVariable) -> Apply:
        return Apply(self, [numbers, oBlocks], [numbers.type(), numbers.type()])

    def perform(
        self, node: Apply, inputs: Sequence[np.ndarray], output_storage: list[list]
    ) -> None:
        numbers, oBlocks = inputs
        for storage, split in zip(output_storage, (np.floor_divide, np.mod), strict=True):
            storage[0] = split(numbers, max(int(oBlocks), 1))

    def infer_shape(self, *args: Any) -> list[tuple]:
        return [args[-1][0]] * 2

    def connection_pattern(self, node: Apply) -> list[list[bool]]:
        return [[False, False], [False, False]]


split_numbers = SplitNumbers()


class BlockGradient(NamedTuple):
    """A gradient by the blocks in use, each once, in the order in which they lie.

    Attributes
    ----------
    inputBlock, outputBlock : (blocks in use,)
        Which blocks these are, counted from the start; zeros if there is a single input block.
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
        result, axes = set_subtensor(self.of(W), values), AXES_OF_BLOCKS[W.type.ndim]
        return result.dimshuffle([axes.index(axis) for axis in range(W.type.ndim)])

    def dense(self, shape: TensorLike) -> TensorVariable:
        """The same as an array of the weights' `shape`, which has two to four sizes."""
        sizes = as_tensor("BlockGradient.dense", "shape", shape)
        ndim = sizes.type.shape[0] if sizes.type.ndim == 1 else None
        if ndim not in AXES_OF_BLOCKS:
            raise ValueError(f"BlockGradient.dense: shape is {shape!r}; expected {SHAPES}")
        return self.put(
            zeros((sizes[axis] for axis in range(ndim)), self.values.dtype), self.values
        )


# Which axes of weights, by how many they are, are those of (iBlocks, oBlocks, iSize, oSize): there
# may be no input blocks, and, of a table, no rows in a block.
AXES_OF_BLOCKS: dict[int, tuple] = {4: (0, 1, 2, 3), 3: ("x", 0, 1, 2), 2: ("x", 0, "x", 1)}
SHAPES = (
    "(iBlocks, oBlocks, iSize, oSize), or, with a single input block, (oBlocks, iSize, oSize), or "
    "a table's (rows, columns)"
)


def as_blocks(W: TensorVariable) -> TensorVariable:
    """Weights with all four axes."""
    return W if W.type.ndim == 4 else W.dimshuffle(AXES_OF_BLOCKS[W.type.ndim])


def merged(gradients: Sequence[BlockGradient], oBlocks: TensorVariable) -> BlockGradient:
    """The sum of gradients in the same weights."""
    if len(gradients) == 1:
        return gradients[0]
    numbers = [gradient.inputBlock * oBlocks + gradient.outputBlock for gradient in gradients]
    used = unique(join(0, *numbers))
    shape = [gradients[0].values.shape[axis] for axis in (1, 2)]
    values = zeros((used.shape[0], 1, *shape), upcast(*(each.values.dtype for each in gradients)))
    for number, gradient in zip(numbers, gradients, strict=True):
        # By two indices: PyTensor 3.0 refuses to write one element by one index.
        part = values[searchsorted(used, number), zeros_like(number)]
        values = set_subtensor(part, part + gradient.values)
    return BlockGradient(*split_numbers(used, oBlocks, return_list=True), values[:, 0])


def squared_norm(values: TensorVariable) -> TensorVariable:
    """``(values**2).sum()`` of the values of blocks; of each block as a block-sparse product."""
    if values.dtype not in ("float32", "float64"):
        return sqr(values).sum()
    blocks, *block = tuple(values.shape)
    # With its size written out: if there are no blocks, none can be told from theirs.
    rows = values.reshape((blocks, 1, prod(block)), ndim=3)
    number, first = arange(blocks)[:, None], full((blocks, 1), 0, "int64")
    of_each = zeros((blocks, 1, 1), values.dtype)
    return sparse_block_gemv(of_each, rows[..., None], rows, number, first).sum()
