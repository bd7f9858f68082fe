"""The ops in Numba: importing this registers them, and zeros."""

from collections import namedtuple
from hashlib import sha256

import numba
import numpy as np
from numba.core.registry import cpu_target
from numba.np.unsafe.ndarray import to_fixed_tuple
from numpy.lib.stride_tricks import as_strided
from pytensor.configdefaults import config
from pytensor.graph.basic import Constant
from pytensor.link.numba.dispatch.basic import (
    numba_funcify_and_cache_key,
    register_funcify_and_cache_key,
    register_funcify_default_op_cache_key,
)

from blocksparse_ops.bias import BLOCKS, COLUMNS, CheckedColumns
from blocksparse_ops.gradient import SparseBlockGradient, SplitNumbers
from blocksparse_ops.kernels.numba import update_blocks, version
from blocksparse_ops.kernels.numba.arrays import (
    Known,
    address_of,
    destination,
    view,
    view_index,
)
from blocksparse_ops.kernels.numba.check import OPS, Call, call_fail, ready_fail
from blocksparse_ops.kernels.numba.compile import kernel
from blocksparse_ops.kernels.numba.gemv import CHECK_GEMV
from blocksparse_ops.kernels.numba.gradient import NEW_GRADIENT
from blocksparse_ops.kernels.numba.outer import CHECK_OUTER
from blocksparse_ops.kernels.numba.perform import ADD_GEMV, ADD_OUTER, NEW_GEMV, NEW_OUTER
from blocksparse_ops.kernels.numba.plain import plain_gemv, plain_gradient, plain_outer
from blocksparse_ops.kernels.numba.threads import start_threads
from blocksparse_ops.link import numba_zeros as numba_zeros
from blocksparse_ops.ops import SparseBlockGemv, SparseBlockOuter
from blocksparse_ops.part import NOT_WRITEABLE, SparseBlockOuterInPart
from blocksparse_ops.signature import DOT, LARGEST, SHAPE
from blocksparse_ops.update_blocks import UpdateBlocks, repeats
from blocksparse_ops.zeros import BlockFull

# The types of scalar that the tiles are written for.
FAST = ("float32", "float64")


# What an op is compiled to: units that return a new array, work in place, and check alone, and a
# function that computes in the types of scalar that these are not written for.
Kernels = namedtuple("Kernels", "new add check plain")

GEMV_KERNELS = Kernels(NEW_GEMV, ADD_GEMV, CHECK_GEMV, plain_gemv)
OUTER_KERNELS = Kernels(NEW_OUTER, ADD_OUTER, CHECK_OUTER, plain_outer)


# Part of its caller before Numba looks at types: not compiled by itself for each layout.
inlined = numba.njit(inline="always")


def funcify(op, node, kernels):
    """Compiled code of an op: function(o, first, second, first_index, second_index, scale)."""
    one, about, of_any, inplace = one_of(node), call_of(op), known_of_any(op), op.inplace
    first_known, second_known = known_of_indices(node)
    ready_check, check = kernels.check.ready, kernels.check.call
    ready_new, new = kernels.new.ready, kernels.new.call
    ready_add, add = kernels.add.ready, kernels.add.call
    plain = kernels.plain

    @inlined
    def in_new(o, first, second, first_index, second_index, scale):
        indices = view_index(first_index, first_known), view_index(second_index, second_known)
        ready_new(scale, 0)
        return new(scale, 0, (view(o), view(first), view(second), *indices, scale, about))

    @inlined
    def in_place(o, first, second, first_index, second_index, scale):
        indices = view_index(first_index, first_known), view_index(second_index, second_known)
        out = destination(o)
        ready_add(scale, 0)
        add(scale, 0, (view(out), view(first), view(second), *indices, scale, about))
        return out

    @inlined
    def plainly(o, first, second, first_index, second_index, scale):
        indices = view_index(first_index, first_known), view_index(second_index, second_known)
        ready_check(0, 0)
        check(0, 0, (view(o), view(first), view(second), *indices, about))
        out = destination(o) if inplace else o.copy()
        if scale != 0:
            plain(out, first, second, first_index, second_index, scale, of_any)
        return out

    if one.dtype.name not in FAST:
        return plainly
    return in_place if op.inplace else in_new


def call_of(op):
    """What kernels are told of a call besides its arrays."""
    if config.openmp:
        start_threads()
    of_any = known_of_any(op)
    number = OPS.index(op.signature.op)
    return Call(number, int(of_any.is_padded), of_any.padding, int(config.openmp))


def known_of_any(op):
    """What is known of an index of an op, whatever its values: see Known."""
    bits = (op.padding_idx or 0) % 2**64
    return Known(-1, -1, op.padding_idx is not None, bits - 2**64 * (bits > LARGEST))


def known_of_indices(node):
    """What is known of each index: see Known."""
    op = node.op
    of_any = known_of_any(op)

    def known_of(index):
        names_block = index != op.padding_idx if of_any.is_padded else np.ones(index.shape, bool)
        blocks = index[names_block]
        least, greatest = (int(blocks.min()), int(blocks.max())) if blocks.size else (0, -1)
        bounds = (least, greatest) if least >= 0 and greatest <= LARGEST else (-1, -1)
        return Known(*bounds, not names_block.all(), of_any.padding)

    values = map(values_of, op.indices(node))
    return tuple(of_any if index is None else known_of(index) for index in values)


def values_of(index):
    """The values that an index has when a function is compiled, if they are known then."""
    if isinstance(index, Constant):
        return index.data
    is_full = index.owner is not None and isinstance(index.owner.op, BlockFull)
    return values_of(index.owner.inputs[0]) if is_full else None


def cache_key(node):
    """For Numba's cache on disk: all that the code depends on but the op and the types."""
    text = repr((version(), config.openmp, known_of_indices(node)))
    return int(sha256(text.encode()).hexdigest()[:15], 16)


def one_of(node):
    """A one of the dtype in which a node computes."""
    one = np.dtype(node.outputs[-1].type.dtype).type(1)
    # Raises, when a function is built and not when it is called, what Numba has no scalars of.
    cpu_target.target_context.get_value_type(numba.typeof(one))
    return one


@register_funcify_default_op_cache_key(SparseBlockGemv)
def numba_funcify_SparseBlockGemv(op, node, **kwargs):
    perform, one = funcify(op, node, GEMV_KERNELS), one_of(node)

    @kernel
    def sparse_block_gemv(o, W, h, inputIdx, outputIdx):
        return perform(o, W, h, inputIdx, outputIdx, one)

    return sparse_block_gemv, cache_key(node)


@register_funcify_default_op_cache_key(SparseBlockOuter)
def numba_funcify_SparseBlockOuter(op, node, **kwargs):
    perform = funcify(op, node, OUTER_KERNELS)

    @kernel
    def sparse_block_outer(o, x, y, xIdx, yIdx, alpha):
        return perform(o, x, y, xIdx, yIdx, alpha.item())

    return sparse_block_outer, cache_key(node)


@register_funcify_default_op_cache_key(SparseBlockGradient)
def numba_funcify_SparseBlockGradient(op, node, **kwargs):
    one, about, of_any = one_of(node), call_of(op), known_of_any(op)
    x_known, y_known = known_of_indices(node)
    ready_check, check = CHECK_OUTER.ready, CHECK_OUTER.call
    ready, new = NEW_GRADIENT.ready, NEW_GRADIENT.call

    @kernel
    def gradient(W, x, y, xIdx, yIdx, alpha):
        scale = alpha.item()
        indices = view_index(xIdx, x_known), view_index(yIdx, y_known)
        ready(scale, 0)
        return new(scale, 0, (view(W), view(x), view(y), *indices, scale, about))

    @kernel
    def plainly(W, x, y, xIdx, yIdx, alpha):
        indices = view_index(xIdx, x_known), view_index(yIdx, y_known)
        ready_check(0, 0)
        check(0, 0, (view(W), view(x), view(y), *indices, about))
        return plain_gradient(W, x, y, xIdx, yIdx, alpha.item(), of_any)

    return gradient if one.dtype.name in FAST else plainly, cache_key(node)


@register_funcify_default_op_cache_key(SplitNumbers)
def numba_funcify_SplitNumbers(op, **kwargs):
    @kernel
    def split_numbers(numbers, oBlocks):
        blocks_of_row = max(oBlocks.item(), 1)
        return numbers // blocks_of_row, numbers % blocks_of_row

    return split_numbers, version()


@register_funcify_and_cache_key(UpdateBlocks)
def numba_funcify_UpdateBlocks(op, node, **kwargs):
    rule, rule_key = numba_funcify_and_cache_key(op.rule, node=op.scalars(node), **kwargs)
    operands = [
        update_blocks.Operand(k, k < op.arrays, repeats(x, k < op.arrays))
        for k, x in enumerate(node.inputs[2:])
    ]
    source = update_blocks.source(operands, op.reads, op.writes, op.inplace)
    key = None
    if rule_key is not None:
        key = sha256(repr((source, rule_key, version())).encode()).hexdigest()
    return update_blocks.compiled(source, rule), key


@kernel
def strides_of(shape, itemsize):
    """Those of an array of blocks without gaps."""
    last = shape[3] * itemsize
    return shape[1] * shape[2] * last, shape[2] * last, last, itemsize


@register_funcify_default_op_cache_key(SparseBlockOuterInPart)
def numba_funcify_SparseBlockOuterInPart(op, node, **kwargs):
    outer_node = op.outer_node(node)
    perform = funcify(op.outer, outer_node, OUTER_KERNELS)

    @kernel
    def in_blocks(whole, part, x, y, xIdx, yIdx, alpha):
        result = perform(part, x, y, xIdx, yIdx, alpha.item())
        if address_of(result) != address_of(part):
            raise ValueError(NOT_WRITEABLE)
        return whole

    @kernel
    def in_reshaped(whole, part, x, y, xIdx, yIdx, alpha, shape):
        shape = to_fixed_tuple(shape, 4)
        if part.flags.c_contiguous or part.size == 0:
            blocks = as_strided(part, shape, strides_of(shape, part.itemsize))
            in_blocks(whole, blocks, x, y, xIdx, yIdx, alpha)
        else:
            blocks = part.copy().reshape(shape)
            in_blocks(whole, blocks, x, y, xIdx, yIdx, alpha)
            # An assignment to a slice takes Numba seconds to compile.
            for place in range(part.size):
                part.flat[place] = blocks.flat[place]
        return whole

    _, *of_outer = node.inputs
    is_reshaped = len(of_outer) > len(outer_node.inputs)
    return in_reshaped if is_reshaped else in_blocks, cache_key(outer_node)


@register_funcify_default_op_cache_key(CheckedColumns)
def numba_funcify_CheckedColumns(op, **kwargs):
    number, no_padding = OPS.index(DOT.op), (0, 0)

    @kernel
    def columns(W, b):
        for which, size, other_size in (
            (BLOCKS, W.shape[-3], b.shape[-2]),
            (COLUMNS, W.shape[-1], b.shape[-1]),
        ):
            if size != other_size:
                ready_fail(0, 0)
                call_fail(0, 0, (number, (SHAPE, which, size, other_size, 0, 0), no_padding))
        return np.asarray(W.shape[-1])

    return columns, version()
