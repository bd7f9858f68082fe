"""The ops in Numba: importing this registers them."""

from hashlib import sha256

import numba
import numpy as np
from numba import literal_unroll
from numba.core import types
from numba.core.registry import cpu_target
from numba.extending import overload
from numba.np.unsafe.ndarray import to_fixed_tuple
from pytensor.configdefaults import config
from pytensor.link.numba.dispatch.basic import (
    register_funcify_and_cache_key,
    register_funcify_default_op_cache_key,
)
from pytensor.link.numba.dispatch.tensor_basic import numba_funcify_Alloc

from blocksparse_ops.index import CheckBlockIndex
from blocksparse_ops.kernels.numba import version
from blocksparse_ops.kernels.numba.arrays import is_signed, view, view_index
from blocksparse_ops.kernels.numba.check import OPS, call_fail, from_start, ready_fail
from blocksparse_ops.kernels.numba.compile import kernel
from blocksparse_ops.kernels.numba.gemv import CHECK_GEMV, RUN_GEMV, RUN_GEMV_PARALLEL
from blocksparse_ops.kernels.numba.outer import CHECK_OUTER, RUN_OUTER, RUN_OUTER_PARALLEL
from blocksparse_ops.kernels.numba.plain import plain_gemv, plain_outer
from blocksparse_ops.kernels.numba.threads import (
    one_thread,
    start_threads,
    threads_allowed,
)
from blocksparse_ops.ops import SparseBlockGemv, SparseBlockOuter
from blocksparse_ops.signature import NO_FAULT
from blocksparse_ops.zeros import BlockZeros

# The types of scalar that the tiles are written for.
FAST = ("float32", "float64")


def destination(o):
    """`o` if it may be written: a view that repeats elements may not, nor a read-only array."""
    raise AssertionError("only for compiled code")


@overload(destination)
def overload_destination(o):
    if not (isinstance(o, types.Array) and o.mutable):
        return lambda o: o.copy()

    def writeable(o):
        for axis in range(o.ndim):
            if o.shape[axis] > 1 and o.strides[axis] == 0:
                return o.copy()
        return o

    return writeable


def funcify(op, node, check_unit, units, plain):
    """Compiled code that checks, and computes: function(o, array, array, index, index, scale).

    Parameters
    ----------
    check_unit : Unit
        Checks all arguments but the scale.
    units : pair of Unit
        Compute without threads and with them, in the types of scalar that tiles are written for.
    plain : callable
        Computes in others.
    """
    number, inplace, one = OPS.index(op.signature.op), op.inplace, one_of(node)
    # Raises, when a function is built and not when it is called, what Numba has no scalars of.
    cpu_target.target_context.get_value_type(numba.typeof(one))
    ready_check, check = check_unit.ready, check_unit.call
    unit, threads = units[config.openmp], threads_allowed if config.openmp else one_thread
    ready, run = unit.ready, unit.call
    if config.openmp:
        start_threads()

    @kernel
    def compute(out, first, second, first_index, second_index, scale):
        views = view(out), view(first), view(second), view_index(first_index)
        ready(scale, 0)
        run(scale, 0, (*views, view_index(second_index), scale, threads()))

    if one.dtype.name not in FAST:
        compute = plain

    @kernel
    def checked(o, first, second, first_index, second_index, scale):
        views = view(o), view(first), view(second), view_index(first_index)
        ready_check(0, 0)
        fault = check(0, 0, (*views, view_index(second_index)))
        if fault[0] != NO_FAULT:
            ready_fail(0, 0)
            call_fail(0, 0, (number, fault))
        out = destination(o) if inplace else o.copy()
        compute(out, first, second, first_index, second_index, scale)
        return out

    return checked


def one_of(node):
    """A one of the dtype of a node's result."""
    return np.dtype(node.outputs[0].type.dtype).type(1)


@register_funcify_default_op_cache_key(SparseBlockGemv)
def numba_funcify_SparseBlockGemv(op, node, **kwargs):
    checked = funcify(op, node, CHECK_GEMV, (RUN_GEMV, RUN_GEMV_PARALLEL), plain_gemv)
    one = one_of(node)

    @kernel
    def sparse_block_gemv(o, W, h, inputIdx, outputIdx):
        return checked(o, W, h, inputIdx, outputIdx, one)

    return sparse_block_gemv, version() + config.openmp


@register_funcify_default_op_cache_key(SparseBlockOuter)
def numba_funcify_SparseBlockOuter(op, node, **kwargs):
    checked = funcify(op, node, CHECK_OUTER, (RUN_OUTER, RUN_OUTER_PARALLEL), plain_outer)

    @kernel
    def sparse_block_outer(o, x, y, xIdx, yIdx, alpha):
        return checked(o, x, y, xIdx, yIdx, alpha.item())

    return sparse_block_outer, version() + config.openmp


@register_funcify_default_op_cache_key(CheckBlockIndex)
def numba_funcify_CheckBlockIndex(op, **kwargs):
    props = (op.caller, op.argument, op.blocks, op.equal)

    @kernel
    def check_block_index(index, blocks, *sizes):
        signed = is_signed(index)
        sound = True
        previous = np.int64(0)
        is_second = False
        for size in literal_unroll(sizes):
            sound &= not is_second or size.item() == previous
            previous = size.item()
            is_second = not is_second
        for value in index.flat:
            sound &= from_start(np.int64(value), signed, blocks.item()) >= 0
        if not sound:
            fail_check(index, blocks, sizes)
        return index

    @kernel
    def fail_check(index, blocks, sizes):
        with numba.objmode():
            CheckBlockIndex(*props).check(index, blocks, *sizes)

    return check_block_index, version()


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
        lengths = np.empty(ndim, np.int64)
        axis = 0
        for size in literal_unroll(sizes):
            lengths[axis] = size.item()
            axis += 1  # noqa: SIM113
        shape = to_fixed_tuple(lengths, ndim)
        if lengths.prod() < LARGE:
            return np.zeros(shape, dtype)
        # NumPy's come as zero from the system: pages that nothing is added to are never touched.
        with numba.objmode(zeros=array_type):
            zeros = np.zeros(shape, dtype)
        return zeros

    key = f"{op.__class__.__name__}_{dtype}_{ndim}_{version()}"
    return block_zeros, sha256(key.encode()).hexdigest()
