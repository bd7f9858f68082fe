"""The arrays that kernels work on: an address, sizes, and strides in bytes, so that one compiled
kernel serves every layout."""

from collections import namedtuple

import numpy as np
from numba.core import cgutils, types
from numba.core.errors import NumbaTypeError
from numba.core.imputils import impl_ret_new_ref
from numba.core.types import Integer, NamedTuple, UniTuple, boolean, int64, void
from numba.extending import intrinsic, overload
from numba.np.arrayobj import _empty_nd_impl
from numba.np.numpy_support import as_dtype

from blocksparse_ops.kernels.numba.compile import kernel
from blocksparse_ops.kernels.numba.records import scalar_of
from blocksparse_ops.kernels.numba.vector import BYTE, WORD, Code, word

Array = namedtuple("Array", "data shape strides")

# What is known of an index before a call: of a constant without negative values the first and the
# last block that it names, else `least` is -1; whether some values may be padding, that is name no
# block; and the 64 bits of that value.
Known = namedtuple("Known", "least greatest is_padded padding")

IndexArray = namedtuple("IndexArray", "data shape strides itemsize is_signed known")


def array_type(ndim):
    return NamedTuple((int64, UniTuple(int64, ndim), UniTuple(int64, ndim)), Array)


KNOWN = NamedTuple((int64, int64, boolean, int64), Known)
INDEX_ARRAY = NamedTuple(
    (int64, UniTuple(int64, 2), UniTuple(int64, 2), int64, boolean, KNOWN), IndexArray
)


@intrinsic
def address_of(typing_context, array):
    """Where the elements start. Only an array that is kept alive keeps them."""

    def generate(context, builder, signature, arguments):
        return parts_of(context, builder, array, arguments[0])[0]

    return int64(array), generate


def parts_of(context, builder, array_type, value):
    """The code of the address of an array, its shape and its strides."""
    parts = context.make_array(array_type)(context, builder, value)
    return builder.ptrtoint(parts.data, WORD), parts.shape, parts.strides


@intrinsic
def keep_alive(typing_context, array):
    """A use of an array: before it, its memory is not freed."""

    def generate(context, builder, signature, arguments):
        return context.get_dummy_value()

    return void(array), generate


@intrinsic
def view(typing_context, array):
    def generate(context, builder, signature, arguments):
        parts = parts_of(context, builder, array, arguments[0])
        return context.make_tuple(builder, signature.return_type, parts)

    return array_type(array.ndim)(array), generate


@intrinsic
def view_index(typing_context, index, known):
    if not isinstance(index.dtype, Integer):
        raise NumbaTypeError("a block index is an integer")
    itemsize, is_signed = index.dtype.bitwidth // 8, index.dtype.signed

    def generate(context, builder, signature, arguments):
        parts = parts_of(context, builder, index, arguments[0])
        about = word(itemsize), context.get_constant(boolean, is_signed), arguments[1]
        return context.make_tuple(builder, signature.return_type, (*parts, *about))

    return INDEX_ARRAY(index, KNOWN), generate


@kernel
def is_one_element(array):
    """Whether a view repeats a single element."""
    for axis in range(len(array.shape)):
        if array.shape[axis] > 1 and array.strides[axis] != 0:
            return False
    return True


@kernel
def is_contiguous(array, itemsize):
    """Whether all elements are one after the other, row after row."""
    step = itemsize
    for axis in range(len(array.shape) - 1, -1, -1):
        if array.shape[axis] > 1 and array.strides[axis] != step:
            return False
        step *= array.shape[axis]
    return True


@intrinsic
def new_empty(typing_context, shape, like):
    """A new array of the type of scalar of `like`. Not np.empty, which Numba compiles for each
    number of axes."""
    array = types.Array(scalar_of(like), len(shape), "C")

    def generate(context, builder, signature, arguments):
        sizes = cgutils.unpack_tuple(builder, arguments[0])
        new = _empty_nd_impl(context, builder, array, sizes)
        return impl_ret_new_ref(context, builder, array, new._getvalue())

    return array(shape, like), generate


def new_zeros(shape, like):
    raise AssertionError("only for compiled code")


@overload(new_zeros)
def overload_new_zeros(shape, like):
    dtype = as_dtype(scalar_of(like))
    return lambda shape, like: np.zeros(shape, dtype)


@intrinsic
def copy_bytes(typing_context, start, to, count):
    def generate(context, builder, signature, arguments):
        start, to = (builder.inttoptr(address, BYTE.as_pointer()) for address in arguments[:2])
        cgutils.raw_memcpy(builder, to, start, arguments[2], 1)
        return context.get_dummy_value()

    return void(int64, int64, int64), generate


@intrinsic
def load(typing_context, address, like):
    """The value at an address, of the type of `like`, or of its scalar if that is a record."""
    scalar = scalar_of(like)

    def generate(context, builder, signature, arguments):
        return Code(builder).load(arguments[0], context.get_value_type(scalar), align=1)

    return scalar(address, like), generate


@intrinsic
def store(typing_context, address, value):
    """Write a value to an address."""

    def generate(context, builder, signature, arguments):
        Code(builder).store(arguments[1], arguments[0], align=1)
        return context.get_dummy_value()

    return void(address, value), generate


@intrinsic
def prefetch_line(typing_context, address):
    """Prefetch the cache line at an address."""

    def generate(context, builder, signature, arguments):
        Code(builder).prefetch(arguments[0], write=0, locality=3)
        return context.get_dummy_value()

    return void(address), generate


def destination(o):
    """`o` if it may be written: a view that repeats elements may not, nor a read-only array."""
    raise AssertionError("only for compiled code")


@overload(destination)
def overload_destination(o):
    if not (isinstance(o, types.Array) and o.mutable):
        return lambda o: o.copy()

    def writeable(o):
        for axis in range(o.ndim):
            if o.shape[axis] > 1 and o.strides[axis] == 0 and o.size > 0:
                return o.copy()
        return o

    return writeable
