"""A call of either op: checked, its result allocated, and computed by one path or the other.

A graph's code is compiled once more for each layout of its arrays, and into all that it stands in.
So it makes views of them, and calls one of the units here.
"""

import numpy as np
from numba.core.types import Array as ArrayOfNumba
from numba.core.types import void

from blocksparse_ops.kernels.numba import gemv, outer
from blocksparse_ops.kernels.numba.arrays import (
    address_of,
    copy_bytes,
    is_contiguous,
    is_one_element,
    new_empty,
    view,
)
from blocksparse_ops.kernels.numba.check import CALL, looked_over
from blocksparse_ops.kernels.numba.choose import is_direct
from blocksparse_ops.kernels.numba.compile import Unit, kernel
from blocksparse_ops.kernels.numba.direct import RUN_DIRECT_GEMV, RUN_DIRECT_OUTER, writes_all
from blocksparse_ops.kernels.numba.gemv import CHECK_GEMV, RUN_GEMV
from blocksparse_ops.kernels.numba.outer import CHECK_OUTER, RUN_OUTER
from blocksparse_ops.kernels.numba.pack import copy_elements
from blocksparse_ops.kernels.numba.panel import size_of
from blocksparse_ops.kernels.numba.threads import threads_allowed

ready_check_gemv, call_check_gemv = CHECK_GEMV.ready, CHECK_GEMV.call
ready_gemv, call_gemv = RUN_GEMV.ready, RUN_GEMV.call
ready_direct_gemv, call_direct_gemv = RUN_DIRECT_GEMV.ready, RUN_DIRECT_GEMV.call
ready_check_outer, call_check_outer = CHECK_OUTER.ready, CHECK_OUTER.call
ready_outer, call_outer = RUN_OUTER.ready, RUN_OUTER.call
ready_direct_outer, call_direct_outer = RUN_DIRECT_OUTER.ready, RUN_DIRECT_OUTER.call


# No address of an initial value: they stand in the output. Not a literal, for which Numba would
# compile once more.
FROM_OUT = np.int64(0)


@kernel
def copy_array(shape, strides, data, to, like):
    """Blocks of rows, to where there are no gaps."""
    first, second, rows, columns = shape
    for i in range(first):
        for j in range(second):
            for p in range(rows):
                row = data + i * strides[0] + j * strides[1] + p * strides[2]
                copy_elements(row, strides[3], columns, to, like)
                to += columns * size_of(like)


@kernel
def copied(array, like):
    out = new_empty(array.shape, like)
    to = address_of(out)
    if is_contiguous(array, size_of(like)):
        copy_bytes(array.data, to, out.size * size_of(like))
    else:
        ones, zeros = (1, 1), (0, 0)
        shape, strides = (ones + array.shape)[-4:], (zeros + array.strides)[-4:]
        copy_array(shape, strides, array.data, to, like)
    return out


@kernel
def run_on_path(out, W, h, inputIdx, outputIdx, scale, start, call):
    threads = threads_allowed(call.is_threaded)
    if is_direct(W, h, out):
        ready_direct_gemv(scale, 0)
        call_direct_gemv(scale, 0, (out, W, h, inputIdx, outputIdx, scale, start, threads))
    else:
        ready_gemv(scale, 0)
        call_gemv(scale, 0, (out, W, h, inputIdx, outputIdx, scale, threads))


def add_gemv(out, W, h, inputIdx, outputIdx, scale, call):
    """In place."""
    inputIdx, outputIdx = looked_over(W, inputIdx, outputIdx)
    ready_check_gemv(0, 0)
    call_check_gemv(0, 0, (out, W, h, inputIdx, outputIdx, call))
    run_on_path(out, W, h, inputIdx, outputIdx, scale, FROM_OUT, call)


def new_gemv(o, W, h, inputIdx, outputIdx, scale, call):
    inputIdx, outputIdx = looked_over(W, inputIdx, outputIdx)
    ready_check_gemv(0, 0)
    call_check_gemv(0, 0, (o, W, h, inputIdx, outputIdx, call))
    is_padded = inputIdx.known.is_padded or outputIdx.known.is_padded
    goes_over_all = is_direct(W, h, o) and writes_all(h, W) and not is_padded
    if goes_over_all and is_one_element(o):
        # What starts from one value everywhere need not be written first and read again.
        out, start = new_empty(o.shape, scale), o.data
    else:
        out, start = copied(o, scale), FROM_OUT
    run_on_path(view(out), W, h, inputIdx, outputIdx, scale, start, call)
    return out


@kernel
def run_outer_on_path(out, x, y, xIdx, yIdx, alpha, call):
    threads = threads_allowed(call.is_threaded)
    if alpha == 0:
        return
    if is_direct(out, x, y):
        ready_direct_outer(alpha, 0)
        call_direct_outer(alpha, 0, (out, x, y, xIdx, yIdx, alpha, threads))
    else:
        ready_outer(alpha, 0)
        call_outer(alpha, 0, (out, x, y, xIdx, yIdx, alpha, threads))


def add_outer(out, x, y, xIdx, yIdx, alpha, call):
    """In place."""
    xIdx, yIdx = looked_over(out, xIdx, yIdx)
    ready_check_outer(0, 0)
    call_check_outer(0, 0, (out, x, y, xIdx, yIdx, call))
    run_outer_on_path(out, x, y, xIdx, yIdx, alpha, call)


def new_outer(o, x, y, xIdx, yIdx, alpha, call):
    xIdx, yIdx = looked_over(o, xIdx, yIdx)
    ready_check_outer(0, 0)
    call_check_outer(0, 0, (o, x, y, xIdx, yIdx, call))
    out = copied(o, alpha)
    run_outer_on_path(view(out), x, y, xIdx, yIdx, alpha, call)
    return out


def units(new, add, arguments):
    """What returns a new array, and what is in place."""
    ndim = arguments[0].types[1].count
    return (
        Unit(new, lambda scalar: ArrayOfNumba(scalar, ndim, "C")(*arguments, scalar, CALL)),
        Unit(add, lambda scalar: void(*arguments, scalar, CALL)),
    )


NEW_GEMV, ADD_GEMV = units(new_gemv, add_gemv, gemv.ARGUMENTS)
NEW_OUTER, ADD_OUTER = units(new_outer, add_outer, outer.ARGUMENTS)
