"""Allocations in Numba: importing this registers them."""

from hashlib import sha256

import numba
import numpy as np
from numba import literal_unroll
from numba.core import types
from numba.np.unsafe.ndarray import to_fixed_tuple
from pytensor.link.numba.dispatch.basic import (
    register_funcify_and_cache_key,
    register_funcify_default_op_cache_key,
)
from pytensor.link.numba.dispatch.tensor_basic import numba_funcify_Alloc

from blocksparse_ops.kernels.numba import version
from blocksparse_ops.kernels.numba.compile import kernel
from blocksparse_ops.zeros import BlockFull, BlockZeros, RepeatedZero


def shape_of(ndim):
    """Compiled code that makes a shape of a tuple of sizes, each an array without axes."""

    @kernel
    def shape(sizes):
        lengths = np.empty(ndim, np.int64)
        axis = 0
        for size in literal_unroll(sizes):
            lengths[axis] = size.item()
            axis += 1  # noqa: SIM113
        return to_fixed_tuple(lengths, ndim)

    return shape


def allocation_key(op, node):
    out_type = node.outputs[0].type
    key = f"{op.__class__.__name__}_{out_type.dtype}_{out_type.ndim}_{version()}"
    return sha256(key.encode()).hexdigest()


@register_funcify_default_op_cache_key(RepeatedZero)
def numba_funcify_RepeatedZero(op, node, **kwargs):
    shape_of_sizes = shape_of(node.outputs[0].type.ndim)

    @kernel
    def repeated_zero(value, *sizes):
        return np.broadcast_to(value, shape_of_sizes(sizes))

    return repeated_zero, version()


# To fill more numbers takes longer than to leave compiled code.
LARGE = 1 << 16


@register_funcify_and_cache_key(BlockZeros)
def numba_funcify_BlockZeros(op, node, **kwargs):
    if not op.value_is_scalar_zero(node.inputs[0]):
        return numba_funcify_Alloc(op, node, **kwargs)
    out_type = node.outputs[0].type
    dtype, ndim = np.dtype(out_type.dtype), out_type.ndim
    array_type = types.Array(numba.from_dtype(dtype), ndim, "C")
    shape_of_sizes = shape_of(ndim)

    @kernel
    def block_zeros(value, *sizes):
        shape = shape_of_sizes(sizes)
        count = 1
        for length in shape:
            count *= length
        if count < LARGE:
            return np.zeros(shape, dtype)
        # NumPy's come as zero from the system: pages that nothing is added to are never touched.
        with numba.objmode(zeros=array_type):
            zeros = np.zeros(shape, dtype)
        return zeros

    return block_zeros, allocation_key(op, node)


@register_funcify_and_cache_key(BlockFull)
def numba_funcify_BlockFull(op, node, **kwargs):
    out_type = node.outputs[0].type
    dtype, shape_of_sizes = np.dtype(out_type.dtype), shape_of(out_type.ndim)

    @kernel
    def block_full(value, *sizes):
        out = np.empty(shape_of_sizes(sizes), dtype)
        for place in range(out.size):
            out.flat[place] = value.item()
        return out

    return block_full, allocation_key(op, node)
