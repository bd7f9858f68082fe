"""The ops in Numba: importing this registers them."""

import numba
import numpy as np
from numba import literal_unroll
from numba.core import types
from numba.extending import overload
from pytensor.link.numba.dispatch.basic import register_funcify_default_op_cache_key

from blocksparse_ops.gemv import SparseBlockGemv
from blocksparse_ops.index import CheckBlockIndex
from blocksparse_ops.kernels.numba import version
from blocksparse_ops.kernels.numba.check import from_start
from blocksparse_ops.kernels.numba.compile import kernel
from blocksparse_ops.kernels.numba.gemv import check_gemv, run_gemv
from blocksparse_ops.kernels.numba.outer import check_outer, run_outer
from blocksparse_ops.outer import SparseBlockOuter
from blocksparse_ops.signature import SOUND, raise_fault


@kernel
def fail(op, fault):
    with numba.objmode():
        raise_fault(op, fault)


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


@register_funcify_default_op_cache_key(SparseBlockGemv)
def numba_funcify_SparseBlockGemv(op, **kwargs):
    name, inplace = op.signature.op, op.inplace

    @kernel
    def sparse_block_gemv(o, W, h, inputIdx, outputIdx):
        fault = check_gemv(o, W, h, inputIdx, outputIdx)
        if fault[0] != SOUND:
            fail(name, fault)
        out = destination(o) if inplace else o.copy()
        run_gemv(out, W, h, inputIdx, outputIdx)
        return out

    return sparse_block_gemv, version()


@register_funcify_default_op_cache_key(SparseBlockOuter)
def numba_funcify_SparseBlockOuter(op, **kwargs):
    name, inplace = op.signature.op, op.inplace

    @kernel
    def sparse_block_outer(o, x, y, xIdx, yIdx, alpha):
        fault = check_outer(o, x, y, xIdx, yIdx)
        if fault[0] != SOUND:
            fail(name, fault)
        out = destination(o) if inplace else o.copy()
        run_outer(out, x, y, xIdx, yIdx, alpha.item())
        return out

    return sparse_block_outer, version()


@register_funcify_default_op_cache_key(CheckBlockIndex)
def numba_funcify_CheckBlockIndex(op, **kwargs):
    props = (op.caller, op.argument, op.blocks, op.equal)

    @kernel
    def check_block_index(index, blocks, *sizes):
        sound = True
        previous = np.int64(0)
        is_second = False
        for size in literal_unroll(sizes):
            sound &= not is_second or size.item() == previous
            previous = size.item()
            is_second = not is_second
        for value in index.flat:
            sound &= from_start(value, blocks.item()) >= 0
        if not sound:
            fail_check(index, blocks, sizes)
        return index

    @kernel
    def fail_check(index, blocks, sizes):
        with numba.objmode():
            CheckBlockIndex(*props).check(index, blocks, *sizes)

    return check_block_index, version()
