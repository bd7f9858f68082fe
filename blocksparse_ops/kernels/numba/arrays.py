"""The arrays that kernels work on: an address, sizes, and strides in bytes, so that one compiled
kernel serves every layout."""

from collections import namedtuple

import numpy as np
from numba.core.errors import NumbaTypeError
from numba.core.types import Integer, NamedTuple, UniTuple, boolean, int64, void
from numba.extending import intrinsic, overload

from blocksparse_ops.kernels.numba.compile import kernel
from blocksparse_ops.kernels.numba.records import scalar_of
from blocksparse_ops.kernels.numba.vector import Code

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


@kernel
def address_of(array):
    """Where the elements start. Only an array that is kept alive keeps them."""
    return np.int64(array.ctypes.data)


@intrinsic
def keep_alive(typing_context, array):
    """A use of an array: before it, its memory is not freed."""

    def generate(context, builder, signature, arguments):
        return context.get_dummy_value()

    return void(array), generate


@kernel
def view(array):
    return Array(address_of(array), array.shape, array.strides)


@kernel
def is_one_element(array):
    """Whether a view repeats a single element."""
    for axis in range(len(array.shape)):
        if array.shape[axis] > 1 and array.strides[axis] != 0:
            return False
    return True


def is_signed(index):
    """Whether an index array holds signed integers."""
    raise AssertionError("only for compiled code")


@overload(is_signed)
def overload_is_signed(index):
    if not isinstance(index.dtype, Integer):
        raise NumbaTypeError("a block index is an integer")
    signed = index.dtype.signed
    return lambda index: signed


@kernel
def view_index(index, known):
    address, signed = address_of(index), is_signed(index)
    return IndexArray(address, index.shape, index.strides, index.itemsize, signed, known)


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
