"""Allocations in Numba: importing this registers them."""

from hashlib import sha256

import numba
import numpy as np
from numba.core import cgutils, types
from numba.core.imputils import impl_ret_borrowed
from numba.extending import intrinsic
from numba.np.arrayobj import populate_array
from pytensor.link.numba.dispatch.basic import (
    register_funcify_and_cache_key,
    register_funcify_default_op_cache_key,
)
from pytensor.link.numba.dispatch.tensor_basic import numba_funcify_Alloc

from blocksparse_ops.kernels.numba import version
from blocksparse_ops.kernels.numba.arrays import new_empty
from blocksparse_ops.kernels.numba.compile import kernel
from blocksparse_ops.kernels.numba.vector import word
from blocksparse_ops.zeros import BlockFull, BlockZeros, RepeatedZero

# By hand, for Numba takes half a second to compile np.broadcast_to, or a shape of sizes, for each
# number of axes.


def element_of(context, builder, array_type, array):
    """The code of the value of an array of one element, as it lies in memory."""
    return builder.load(context.make_array(array_type)(context, builder, array).data)


@intrinsic
def shape_of(typing_context, sizes):
    """The shape of a tuple of sizes, each an array of one element."""

    def generate(context, builder, signature, arguments):
        arrays = cgutils.unpack_tuple(builder, arguments[0])
        lengths = [
            context.cast(builder, element_of(context, builder, *each), each[0].dtype, types.int64)
            for each in zip(sizes, arrays, strict=True)
        ]
        return context.make_tuple(builder, signature.return_type, lengths)

    return types.BaseTuple.from_types([types.int64] * len(sizes))(sizes), generate


@intrinsic
def repeated(typing_context, value, shape):
    """A read-only view of this shape that repeats an array of one element."""

    def generate(context, builder, signature, arguments):
        source = context.make_array(value)(context, builder, arguments[0])
        result = context.make_array(signature.return_type)(context, builder)
        steps = [word(0)] * len(shape)
        owner = {"meminfo": source.meminfo, "parent": source.parent}
        populate_array(result, source.data, arguments[1], steps, source.itemsize, **owner)
        return impl_ret_borrowed(context, builder, signature.return_type, result._getvalue())

    return types.Array(value.dtype, len(shape), "A", readonly=True)(value, shape), generate


@intrinsic
def fill(typing_context, array, value):
    """Set all elements of an array without gaps to that of an array of one."""

    def generate(context, builder, signature, arguments):
        filled = context.make_array(array)(context, builder, arguments[0])
        element = element_of(context, builder, value, arguments[1])
        with cgutils.for_range(builder, filled.nitems) as loop:
            builder.store(element, builder.gep(filled.data, [loop.index]))
        return context.get_dummy_value()

    return types.void(array, value), generate


def allocation_key(op, node):
    out_type = node.outputs[0].type
    key = f"{op.__class__.__name__}_{out_type.dtype}_{out_type.ndim}_{version()}"
    return sha256(key.encode()).hexdigest()


@register_funcify_default_op_cache_key(RepeatedZero)
def numba_funcify_RepeatedZero(op, node, **kwargs):
    @kernel
    def repeated_zero(value, *sizes):
        return repeated(value, shape_of(sizes))

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

    @kernel
    def block_zeros(value, *sizes):
        shape = shape_of(sizes)
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
    @kernel
    def block_full(value, *sizes):
        out = new_empty(shape_of(sizes), value.item())
        fill(out, value)
        return out

    return block_full, allocation_key(op, node)
