"""A view of block indices that has been checked, for ops that do not check by themselves."""

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
from pytensor.gradient import disconnected_type
from pytensor.graph.basic import Apply, Constant, Variable
from pytensor.graph.fg import FunctionGraph
from pytensor.graph.replace import _vectorize_node
from pytensor.link.c.op import COp
from pytensor.tensor.basic import as_tensor_variable, cast
from pytensor.tensor.blockwise import vectorize_node_fallback
from pytensor.tensor.variable import TensorVariable

from blocksparse_ops.arguments import (
    TensorLike,
    TensorOp,
    as_block_index,
    foldable,
    require_integers,
)
from blocksparse_ops.kernels.c import source
from blocksparse_ops.kernels.c.extension import INDEX
from blocksparse_ops.reference import first_out_of_range
from blocksparse_ops.signature import disagreement, out_of_range


class CheckBlockIndex(TensorOp, COp):
    """``index``, or an IndexError if one of its values lies outside [-blocks, blocks)

    PyTensor's gather does not check its indices in Numba mode. A gather of ``index`` through
    this op, and the gradient of that gather, see checked indices only. And however a graph is
    optimised, what is wrong is told in the words of the function that was called.

    Parameters
    ----------
    caller : str
        The function that errors name.
    argument : str
        The name of the index in that function.
    blocks : str
        What the number of blocks is, for instance ``"W.shape[1]"``.
    equal : tuple of pairs of str
        Which sizes must be equal, for instance ``(("W.shape[1]", "b.shape[0]"),)``.
    """

    __props__ = ("caller", "argument", "blocks", "equal")

    def __init__(
        self, caller: str, argument: str, blocks: str, equal: Sequence[tuple[str, str]] = ()
    ):
        self.caller = caller
        self.argument = argument
        self.blocks = blocks
        self.equal = tuple(map(tuple, equal))
        self.view_map = {0: [0]}

    def __str__(self) -> str:
        return f"{type(self).__name__}{{{self.argument}}}"

    def make_node(self, index: TensorLike, blocks: TensorLike, *sizes: TensorLike) -> Apply:
        """
        Parameters
        ----------
        index : tensor of integers
            The block indices, any number of dimensions.
        blocks : ()
            The number of blocks.
        *sizes : ()
            The two sizes of each pair in `equal`, one pair after the other.
        """
        index = as_block_index(self.caller, self.argument, index)
        require_integers(self.caller, self.argument, index)
        if len(sizes) != 2 * len(self.equal):
            raise TypeError(f"{self}: got {len(sizes)} sizes, expected two for each pair")
        numbers = [cast(as_tensor_variable(size, ndim=0), "int64") for size in (blocks, *sizes)]
        return Apply(self, [index, *numbers], [index.type()])

    def check_sizes(self, *sizes: int) -> None:
        """Raise if two of a pair differ."""
        pairs = zip(sizes[::2], sizes[1::2], strict=True)
        for (axis, other), (size, other_size) in zip(self.equal, pairs, strict=True):
            if size != other_size:
                raise ValueError(disagreement(self.caller, axis, size, other, other_size))

    def check(self, index: np.ndarray, blocks: int, *sizes: int) -> None:
        """Raise what is wrong with these values."""
        self.check_sizes(*sizes)
        self.check_range(index, blocks)

    def check_constant(self, node: Apply) -> None:
        """Raise if a constant index does not fit a number of blocks that is constant too."""
        index, blocks, *_ = node.inputs
        if isinstance(index, Constant) and isinstance(blocks, Constant):
            self.check_range(index.data, blocks.data)

    def check_range(self, index: np.ndarray, blocks: int) -> None:
        """Raise if an index is out of range."""
        where = first_out_of_range(index, int(blocks))
        if where is not None:
            name = f"{self.caller}: {self.argument}"
            raise IndexError(out_of_range(name, where, index[where], self.blocks, int(blocks)))

    def perform(self, node: Apply, inputs: Sequence[Any], output_storage: list[list]) -> None:
        self.check(*inputs)
        output_storage[0][0] = inputs[0]

    def c_compile_args(self, **kwargs: Any) -> list[str]:
        return list(source.COMPILE_ARGS)

    def c_support_code_struct(self, node: Apply, name: str) -> str:
        return source.declare(f"check_{name}")

    def c_init_code_struct(self, node: Apply, name: str, sub: dict[str, str]) -> str:
        return source.load(f"check_{name}", f'"{INDEX}"', "check", False, sub["fail"])

    def c_code_cache_version(self) -> tuple[Hashable, ...]:
        return source.version()

    def c_code(
        self, node: Apply, name: str, inputs: list[str], outputs: list[str], sub: dict[str, str]
    ) -> str:
        props = (self.caller, self.argument, self.blocks, self.equal)
        index, *numbers = inputs
        (output,) = outputs
        return source.check(f"check_{name}", props, index, numbers, output, sub["fail"])

    def do_constant_folding(self, fgraph: FunctionGraph, node: Apply) -> bool:
        return foldable(node, self.check)

    def infer_shape(self, *args: Any) -> list[tuple]:
        # PyTensor 3.0 calls this with (fgraph, node, shapes), later versions with (node, shapes).
        return [args[-1][0]]

    def connection_pattern(self, node: Apply) -> list[list[bool]]:
        return [[False] for _ in node.inputs]

    def pullback(
        self,
        inputs: Sequence[Variable],
        outputs: Sequence[Variable],
        cotangents: Sequence[Variable],
    ) -> list[Variable]:
        return [disconnected_type() for _ in inputs]

    def pushforward(
        self,
        inputs: Sequence[Variable],
        outputs: Sequence[Variable],
        tangents: Sequence[Variable],
    ) -> list[Variable]:
        return [disconnected_type()]


@_vectorize_node.register(CheckBlockIndex)
def vectorize_check_block_index(
    op: CheckBlockIndex, node: Apply, index: TensorVariable, *sizes: TensorVariable
) -> Apply:
    """The check takes any number of dimensions, so new ones change nothing."""
    if any(size.type.ndim for size in sizes):
        return vectorize_node_fallback(op, node, index, *sizes)
    return op.make_node(index, *sizes)
