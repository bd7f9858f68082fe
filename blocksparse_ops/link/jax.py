"""The ops in JAX: importing this registers them."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax import Array
from jax.dtypes import canonicalize_dtype
from pytensor.graph.basic import Apply, Variable
from pytensor.link.jax.dispatch import jax_funcify
from pytensor.tensor.elemwise import DimShuffle

from blocksparse_ops.bias import CheckedColumns
from blocksparse_ops.gradient import SparseBlockGradient
from blocksparse_ops.kernels.jax import gemv, outer
from blocksparse_ops.link.traced import (
    funcify_CheckedColumns,
    refuse_gradient,
    scaled,
    with_sizes_checked,
    zeros_for_padding,
)
from blocksparse_ops.ops import SparseBlockGemv, SparseBlockOuter
from blocksparse_ops.zeros import SizeOf


def is_transposed(W: Variable) -> bool:
    """Whether weights are others with the roles of input and output exchanged."""
    return (
        W.owner is not None
        and isinstance(W.owner.op, DimShuffle)
        and W.owner.op.new_order == (1, 0, 3, 2)
    )


def as_declared(node: Apply, *values: Array) -> Iterator[Array]:
    """Values in the dtype of a node's result: PyTensor's other ops may give JAX wider ones."""
    dtype = canonicalize_dtype(node.outputs[0].type.dtype)
    return (value.astype(dtype) for value in values)


@jax_funcify.register(SparseBlockGemv)
def jax_funcify_SparseBlockGemv(op: SparseBlockGemv, node: Apply, **kwargs: Any) -> Callable:
    transposed = is_transposed(node.inputs[1])

    def sparse_block_gemv(o: Array, W: Array, h: Array, inputIdx: Array, outputIdx: Array) -> Array:
        o, W, h = as_declared(node, o, W, h)
        if transposed:  # XLA takes one transposition for the other, and reads W where it lies
            W = W.transpose(1, 0, 3, 2)
        arguments = o, W, h, inputIdx, outputIdx
        return gemv(*arguments, transposed=transposed, padding=op.padding_idx)

    return with_sizes_checked(op, node, sparse_block_gemv)


@jax_funcify.register(SparseBlockOuter)
def jax_funcify_SparseBlockOuter(op: SparseBlockOuter, node: Apply, **kwargs: Any) -> Callable:
    scale = scaled(jax.numpy, node)

    def sparse_block_outer(
        o: Array, x: Array, y: Array, xIdx: Array, yIdx: Array, alpha: Array
    ) -> Array:
        x = zeros_for_padding(jax.numpy, op, x, xIdx)
        o, x, y = as_declared(node, o, *scale(x, y, alpha))
        return outer(o, x, y, xIdx, yIdx, padding=op.padding_idx)

    return with_sizes_checked(op, node, sparse_block_outer)


jax_funcify.register(CheckedColumns, funcify_CheckedColumns)
jax_funcify.register(SparseBlockGradient, refuse_gradient)


@jax_funcify.register(SizeOf)
def jax_funcify_SizeOf(op: SizeOf, **kwargs: Any) -> Callable:
    return lambda x: x.shape[op.axis]
