"""The ops in Numba: importing this registers them."""

import numba
from numba import literal_unroll
from numba.core import types
from numba.extending import overload
from pytensor.link.numba.dispatch.basic import register_funcify_default_op_cache_key

from blocksparse_ops.gemv import SparseBlockGemv
from blocksparse_ops.index import CheckBlockIndex
from blocksparse_ops.kernels.numba import gemv, outer, version
from blocksparse_ops.kernels.numba.check import from_start
from blocksparse_ops.kernels.numba.compile import kernel
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
        fault, inputs, outputs = gemv.check(o, W, h, inputIdx, outputIdx)
        if fault[0] != SOUND:
            fail(name, fault)
        out = destination(o) if inplace else o.copy()
        gemv.run(out, W, h, inputs, outputs)
        return out

    return sparse_block_gemv, version()


@register_funcify_default_op_cache_key(SparseBlockOuter)
def numba_funcify_SparseBlockOuter(op, **kwargs):
    name, inplace = op.signature.op, op.inplace

    @kernel
    def sparse_block_outer(o, x, y, xIdx, yIdx, alpha):
        fault, inputs, outputs = outer.check(o, x, y, xIdx, yIdx)
        if fault[0] != SOUND:
            fail(name, fault)
        out = destination(o) if inplace else o.copy()
        outer.run(out, x, y, inputs, outputs, alpha.item())
        return out

    return sparse_block_outer, version()


@register_funcify_default_op_cache_key(CheckBlockIndex)
def numba_funcify_CheckBlockIndex(op, **kwargs):
    caller, argument, axes = op.caller, op.argument, op.axes

    @kernel
    def check_block_index(index, *sizes):
        blocks = sizes[0].item()
        sound = True
        for size in literal_unroll(sizes):
            sound &= size.item() == blocks
        for value in index.flat:
            sound &= from_start(value, blocks) >= 0
        if not sound:
            fail_check(caller, argument, axes, index, sizes)
        return index

    return check_block_index, version()


@kernel
def fail_check(caller, argument, axes, index, sizes):
    with numba.objmode():
        raise_check(caller, argument, axes, index, sizes)


def raise_check(caller, argument, axes, index, sizes):
    """Let the op find again, and say, what compiled code found to be wrong."""
    CheckBlockIndex(caller, argument, axes).check(index, *sizes)
