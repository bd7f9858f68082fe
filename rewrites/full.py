"""A product in which every example uses every block, in order, is a dense one."""

from collections.abc import Sequence
from functools import reduce

import numpy as np
from pytensor.graph.basic import Apply, Constant, Variable
from pytensor.graph.fg import FunctionGraph
from pytensor.graph.rewriting.basic import copy_stack_trace, node_rewriter
from pytensor.raise_op import CheckAndRaise
from pytensor.tensor.math import and_, eq
from pytensor.tensor.shape import Shape_i
from pytensor.tensor.variable import TensorVariable

from blocksparse_ops.ops import SparseBlockGemv, SparseBlockOuter
from blocksparse_ops.rewrites.match import register_pass
from blocksparse_ops.zeros import is_zeros, known_value

# Where the ops take longer: with blocks of 16 x 16 they took 2.7 to 3.8 times as long for 512
# examples and 0.6 to 2.2 times for 8, of 8 x 8 1.7 to 2.8 times for 100, of 32 x 32 0.8 to 1.2
# times for 64, of one number 7 to 58 times for 500 (both gradients, float32 and float64).
MOST_ELEMENTS, LEAST_EXAMPLES = 1 << 8, 32


@node_rewriter([SparseBlockGemv])
def local_full_gemv(fgraph: FunctionGraph, node: Apply) -> list[Variable] | None:
    """gemv(o, W, h, ...) -> o + h @ W, if the windows are constants of all blocks"""
    o, W, h, *indices = node.inputs
    batch = batch_of_full_windows(node, W, indices, [o, h])
    if batch is None:
        return None
    iBlocks, oBlocks, iSize, oSize = W.type.shape
    matrix = W.transpose(0, 2, 1, 3).reshape((iBlocks * iSize, oBlocks * oSize))
    h = checked(node, "h", h, (batch, iBlocks, iSize))
    result = (h.reshape((batch, iBlocks * iSize)) @ matrix).reshape((batch, oBlocks, oSize))
    return [added(node, o, result)]


@node_rewriter([SparseBlockOuter])
def local_full_outer(fgraph: FunctionGraph, node: Apply) -> list[Variable] | None:
    """outer(o, x, y, ..., alpha) -> o + alpha * x.T @ y, if the windows are constants of all blocks

    For a constant scale: one of 0 adds nothing, whatever the product.
    """
    o, x, y, *indices, alpha = node.inputs
    batch = batch_of_full_windows(node, o, indices, [x, y])
    scale = known_value(alpha)
    if batch is None or not scale:
        return None
    iBlocks, oBlocks, iSize, oSize = o.type.shape
    x = checked(node, "x", x, (batch, iBlocks, iSize))
    y = checked(node, "y", y, (batch, oBlocks, oSize))
    rows, columns = x.reshape((batch, iBlocks * iSize)), y.reshape((batch, oBlocks * oSize))
    matrix = (rows if scale == 1 else alpha * rows).T @ columns
    result = matrix.reshape((iBlocks, iSize, oBlocks, oSize)).transpose(0, 2, 1, 3)
    return [added(node, o, result)]


def batch_of_full_windows(
    node: Apply,
    blocks: TensorVariable,
    indices: Sequence[Variable],
    others: Sequence[TensorVariable],
) -> int | None:
    """How many examples there are, if each is known to use all blocks, in order."""
    shape = blocks.type.shape
    is_known = None not in shape and all(isinstance(index, Constant) for index in indices)
    if node.op.inplace or node.op.padding_idx is not None or not is_known:
        return None
    if len({x.type.dtype for x in (blocks, *others)}) > 1 or shape[2] * shape[3] > MOST_ELEMENTS:
        return None
    windows = (
        index.data.shape[1] == count and (index.data == np.arange(count)).all()
        for index, count in zip(indices, shape, strict=False)
    )
    batch = len(indices[0].data)
    return batch if batch >= LEAST_EXAMPLES and min(shape) > 0 and all(windows) else None


def checked(
    node: Apply, name: str, x: TensorVariable, shape: tuple[int | None, ...]
) -> TensorVariable:
    """An argument, checked as the op does."""
    unknown = [axis for axis, size in enumerate(x.type.shape) if size is None]
    if not unknown:
        return x
    told = f"{type(node.op).__name__}: {name} must have the shape {shape}, by the other arguments"
    are_equal = [eq(Shape_i(axis)(x), shape[axis]) for axis in unknown]
    return CheckAndRaise(ValueError, told)(x, reduce(and_, are_equal))


def added(node: Apply, o: TensorVariable, result: TensorVariable) -> Variable:
    """A result of zeros is the product alone."""
    if not is_zeros(o):
        result = checked(node, "o", o, result.type.shape) + result
    [old] = node.outputs
    copy_stack_trace(old, result)
    return old.type.filter_variable(result, allow_convert=True)


# On CPUs: after what merges the ops, from 1.52 on, and before 1.7, where PyTensor sees to dots.
register_pass(local_full_gemv, "inplace", position=1.57)
register_pass(local_full_outer, "inplace", position=1.571)
