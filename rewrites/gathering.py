"""Blocks as they are gathered: which of their axes are which of the ops', and the ops' arguments.

``B[i]`` has an axis for each axis of the index, and then those of a block. In a sum of products
with another array each is one of five: the examples, the window of inputs, the window of outputs,
the rows of a block or its columns. The first two of these the other array has too, and so it has
the rows; a sum goes over the window of inputs and the rows.
"""

from collections.abc import Sequence
from math import prod
from typing import NamedTuple

import numpy as np
import pytensor.tensor.subtensor as subtensor
from pytensor.graph.basic import Apply
from pytensor.graph.fg import FunctionGraph
from pytensor.tensor.elemwise import DimShuffle
from pytensor.tensor.math import mul
from pytensor.tensor.shape import specify_shape
from pytensor.tensor.type import int_dtypes, uint_dtypes
from pytensor.tensor.variable import TensorVariable

from blocksparse_ops.kernels.thresholds import DOT_ELEMENTS, DOT_USES, GATHERED_BYTES, SUM_USES
from blocksparse_ops.rewrites.bias import GATHERS
from blocksparse_ops.rewrites.linear import sizes_of
from blocksparse_ops.rewrites.match import classes_in, same_shape
from blocksparse_ops.zeros import BlockFull, full, is_zeros

# PyTensor 3.0 has a class of its own for what a vector indexes.
WRITES = classes_in(subtensor, "AdvancedIncSubtensor", "AdvancedIncSubtensor1")


class LeftAlone(Exception):
    """Why something that is written by gathering does not run as an op."""


class Axes(NamedTuple):
    """Which axes of gathered blocks are which of the op's; None for one that there is not."""

    examples: tuple[int, ...]
    inputs: int | None
    outputs: int | None
    rows: int | None
    columns: int | None

    @property
    def is_reversed(self) -> bool:
        """Whether a block's first axis is its columns, as it is in a gradient."""
        return self.columns is not None and (self.rows is None or self.columns < self.rows)

    @property
    def is_input(self) -> bool:
        """Whether an index that is alone is that of the inputs."""
        return self.inputs is not None or (self.outputs is None and self.is_reversed)


class Gather(NamedTuple):
    """``array[indices]``, what a node takes or adds to: blocks of one axis or two."""

    array: TensorVariable
    indices: tuple[TensorVariable, ...]

    @property
    def places(self) -> int:
        """How many axes the indices have."""
        return self.indices[0].type.ndim

    @property
    def ndim(self) -> int:
        return self.places + self.array.type.ndim - len(self.indices)

    @property
    def block_ndim(self) -> int:
        return self.ndim - self.places

    def axes_of(self, index: TensorVariable) -> set[int]:
        """The axes along which an index differs: all of one that is alone."""
        if len(self.indices) == 1:
            return set(range(self.places))
        return {axis for axis, is_one in enumerate(index.type.broadcastable) if not is_one}

    def block_axis(self, axis: int | None) -> int | str:
        """The axis of the array that an axis of the gathered blocks is, 'x' for none."""
        return "x" if axis is None else axis - self.places + len(self.indices)


def gather_of(node: Apply) -> Gather:
    """What a node gathers, or writes into.

    Raises
    ------
    LeftAlone
        If it does something else.
    """
    indices = node.inputs[2 if isinstance(node.op, WRITES) else 1 :]
    gather = Gather(node.inputs[0], tuple(indices))
    if not all(isinstance(entry, int) for entry in getattr(node.op, "idx_list", (0,))):
        raise LeftAlone("a slice is among the indices, or an axis before them")
    if not all(x.type.dtype in (*int_dtypes, *uint_dtypes) for x in indices):
        raise LeftAlone("an index is a mask")
    if gather.block_ndim not in (1, 2):
        raise LeftAlone("what is gathered are neither rows nor matrices")
    if gather.array.type.dtype not in ("float32", "float64"):
        raise LeftAlone(f"the blocks are of dtype {gather.array.type.dtype}")
    if 0 in gather.array.type.shape:
        raise LeftAlone("the blocks have no elements")
    if not is_of_windows(gather):
        raise LeftAlone("the indices are none of one window, or one of each side, an example")
    return gather


def is_of_windows(gather: Gather) -> bool:
    """Whether indices have an axis of examples, and one or none of a window each."""
    if len(gather.indices) == 1:
        return gather.places in (1, 2)
    if len(gather.indices) != 2 or len({x.type.ndim for x in gather.indices}) != 1:
        return False
    one, other = map(gather.axes_of, gather.indices)
    are_examples = len(one & other) == 1 and len(one - other) < 2 and len(other - one) < 2
    return are_examples and len(one | other) == gather.places


def check_lengths(fgraph: FunctionGraph, gather: Gather) -> None:
    """Raise LeftAlone unless no index may be repeated for the other."""
    first, *others = gather.indices
    shared = set.intersection(*map(gather.axes_of, gather.indices))
    if not all(same_shape(fgraph, first, x, axis, axis) for x in others for axis in shared):
        raise LeftAlone("it is not known that both indices are of one length")


def need_many(gather: Gather, blocks: TensorVariable, block_elements: int, uses: int) -> None:
    """Raise LeftAlone where a product in JAX gathers as much at once itself, or is slower.

    That is unless blocks have so many elements, and each, in the mean, has so many uses.
    """
    if None in (*blocks.type.shape, *gather.array.type.shape):
        raise LeftAlone("not all sizes are known: give static shapes")
    elements = prod(blocks.type.shape)
    if elements * np.dtype(blocks.type.dtype).itemsize <= GATHERED_BYTES:
        raise LeftAlone("the gathered blocks are few")
    if prod(blocks.type.shape[gather.places :]) < block_elements:
        raise LeftAlone("the blocks are small")
    if elements < uses * prod(gather.array.type.shape):
        raise LeftAlone("few examples share a block")


def need_many_for_dots(gather: Gather, blocks: TensorVariable) -> None:
    need_many(gather, blocks, DOT_ELEMENTS, DOT_USES)
    # Here, where JAX is about to compile: who uses other modes may not have it.
    from blocksparse_ops.kernels.jax_gathered import is_on_gpu

    if is_on_gpu():
        raise LeftAlone("on a GPU XLA keeps none of the blocks that a dot gathers")


def need_many_for_sums(gather: Gather, blocks: TensorVariable) -> None:
    if gather.block_ndim == 1:
        raise LeftAlone("XLA fuses the gather, the product and the sum into one loop")
    need_many(gather, blocks, 1, SUM_USES)


def axes_of(gather: Gather, varies: set[int], summed: set[int]) -> Axes:
    """The role of each axis, by those along which the other array differs, and those summed over.

    Raises
    ------
    LeftAlone
        If that is no product of ours.
    """
    if summed - varies:
        raise LeftAlone("blocks are summed, not products of blocks")
    places, block = range(gather.places), range(gather.places, gather.ndim)
    examples = tuple(k for k in places if k in varies - summed)
    inputs, outputs = one_of(places, summed), one_of(places, set(places) - varies)
    rows, columns = one_of(block, summed), one_of(block, set(block) - varies)
    if any(k in varies - summed for k in block):
        raise LeftAlone("an axis of a block is multiplied and not summed over")
    if not examples:
        raise LeftAlone("the other factor is one for all examples, or the sum is over these")
    if not are_of_sides(gather, inputs, outputs):
        raise LeftAlone("an index of one window has two")
    return Axes(examples, inputs, outputs, rows, columns)


def one_of(axes: Sequence[int], chosen: set[int]) -> int | None:
    found = [axis for axis in axes if axis in chosen]
    if len(found) > 1:
        raise LeftAlone("two axes have the same part in the product")
    return found[0] if found else None


def are_of_sides(gather: Gather, inputs: int | None, outputs: int | None) -> bool:
    """Whether each index differs along the window of its side alone."""
    windows = {inputs, outputs} - {None}
    if len(gather.indices) == 1:
        return len(windows) < 2
    one, other = map(gather.axes_of, gather.indices)
    return one ^ other == windows


class Arguments(NamedTuple):
    """Which axes of the array the four of the ops' weights are, and an index for each side."""

    order: Sequence[int | str]
    inputIdx: TensorVariable
    outputIdx: TensorVariable


def arguments_of(fgraph: FunctionGraph, gather: Gather, axes: Axes) -> Arguments:
    order = [gather.block_axis(axes.rows), gather.block_axis(axes.columns)]
    if len(gather.indices) == 1:
        [index] = gather.indices
        of_window = arranged(index, axes, axes.inputs if axes.is_input else axes.outputs)
        zero = zero_index(fgraph, gather, axes)
        indices = (of_window, zero) if axes.is_input else (zero, of_window)
        order = [0, "x", *order] if axes.is_input else ["x", 0, *order]
    else:
        window = axes.outputs if axes.inputs is None else axes.inputs
        is_of_first = window in gather.axes_of(gather.indices[0])
        is_exchanged = axes.is_reversed if window is None else is_of_first == (axes.inputs is None)
        input_index, output_index = gather.indices[:: -1 if is_exchanged else 1]
        indices = (
            arranged(input_index, axes, axes.inputs),
            arranged(output_index, axes, axes.outputs),
        )
        order = [*((1, 0) if is_exchanged else (0, 1)), *order]
    return Arguments(order, *indices)


def arranged(x: TensorVariable, axes: Axes, *others: int | None) -> TensorVariable:
    """A variable with one axis of examples, and then these others, of length 1 if None."""
    present = [axis for axis in others if axis is not None]
    x = with_axes(x, [*axes.examples, *present])
    if len(axes.examples) > 1:
        first, second, *sizes = x.shape
        x = x.reshape((first * second, *sizes), ndim=1 + len(present))
    places = iter(range(1, 1 + len(present)))
    return with_axes(x, [0, *("x" if axis is None else next(places) for axis in others)])


def beside(
    fgraph: FunctionGraph, gather: Gather, x: TensorVariable, axes: Axes, *others: int | None
) -> TensorVariable:
    """The same of what gathered blocks are multiplied by, or what is written into them.

    Where axes of examples become one, each is checked to be as long as that of the indices: they
    may differ and have the same number of examples in all.
    """
    if len(axes.examples) > 1:
        sizes: list[TensorVariable | None] = [None] * x.type.ndim
        for axis in axes.examples:
            if not same_shape(fgraph, x, gather.indices[0], axis, axis):
                sizes[axis] = size_of_place(fgraph, gather, axis)
        x = specify_shape(x, sizes)
    return arranged(x, axes, *others)


def with_axes(x: TensorVariable, order: Sequence[int | str]) -> TensorVariable:
    return x if list(order) == list(range(x.type.ndim)) else x.dimshuffle(order)


def zero_index(fgraph: FunctionGraph, gather: Gather, axes: Axes) -> TensorVariable:
    """Zeros for each example; those of the graph, if there are: PyTensor may not merge others.

    By the same indices it is known that the ops make the same checks.
    """
    batch = product_of_sizes([size_of_place(fgraph, gather, axis) for axis in axes.examples])
    zero = full((batch, 1), 0, "int64")
    clients = (client for client, _ in fgraph.clients.get(batch, ()))
    found = (x for client in clients for x in client.outputs if x.type == zero.type)
    return next((x for x in found if isinstance(x.owner.op, BlockFull) and is_zeros(x)), zero)


def size_of_place(fgraph: FunctionGraph, gather: Gather, axis: int) -> TensorVariable:
    """The size of an axis of the indices."""
    found = (x for x in gather.indices if axis in gather.axes_of(x))
    return sizes_of(fgraph, next(found, gather.indices[0]))[axis]


def product_of_sizes(sizes: Sequence[TensorVariable]) -> TensorVariable:
    return sizes[0] if len(sizes) == 1 else mul(*sizes)


def is_permutation(node: Apply) -> bool:
    """Whether a node puts all axes into another order, and that is all."""
    is_dimshuffle = isinstance(node.op, DimShuffle)
    return is_dimshuffle and sorted(node.op.new_order, key=str) == list(range(node.op.input_ndim))


def through_axes(node: Apply, order: Sequence[int | str]) -> list[int | str]:
    """Which axes those of a DimShuffle's output are, if those of its input are these."""
    return ["x" if axis == "x" else order[axis] for axis in node.op.new_order]


def gathered(x: TensorVariable) -> Apply | None:
    """The node that gathers what a variable is with its axes in some order."""
    while x.owner is not None and isinstance(x.owner.op, DimShuffle):
        x = x.owner.inputs[0]
    return x.owner if x.owner is not None and isinstance(x.owner.op, GATHERS) else None
