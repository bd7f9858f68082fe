"""The ops in Numba: importing this registers them, and zeros."""

from collections import namedtuple
from hashlib import sha256

import numba
import numpy as np
from numba.core import types
from numba.core.registry import cpu_target
from numba.extending import overload
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
    is_one_element,
    keep_alive,
    view,
    view_index,
)
from blocksparse_ops.kernels.numba.check import OPS, call_fail, ready_fail
from blocksparse_ops.kernels.numba.choose import is_direct
from blocksparse_ops.kernels.numba.compile import kernel
from blocksparse_ops.kernels.numba.direct import (
    RUN_DIRECT_GEMV,
    RUN_DIRECT_GEMV_PARALLEL,
    RUN_DIRECT_OUTER,
    RUN_DIRECT_OUTER_PARALLEL,
    writes_all,
)
from blocksparse_ops.kernels.numba.gemv import CHECK_GEMV, RUN_GEMV, RUN_GEMV_PARALLEL
from blocksparse_ops.kernels.numba.gradient import (
    OUTER_WORDS,
    PLAN_GRADIENT,
    RUN_GRADIENT,
    RUN_GRADIENT_PARALLEL,
)
from blocksparse_ops.kernels.numba.outer import CHECK_OUTER, RUN_OUTER, RUN_OUTER_PARALLEL, outer_at
from blocksparse_ops.kernels.numba.plain import plain_gemv, plain_gradient, plain_outer
from blocksparse_ops.kernels.numba.threads import one_thread, start_threads, threads_allowed
from blocksparse_ops.link import numba_zeros as numba_zeros
from blocksparse_ops.ops import SparseBlockGemv, SparseBlockOuter
from blocksparse_ops.part import NOT_WRITEABLE, SparseBlockOuterInPart
from blocksparse_ops.signature import DOT, LARGEST, NO_FAULT, SHAPE
from blocksparse_ops.update_blocks import UpdateBlocks, repeats
from blocksparse_ops.zeros import BlockFull

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


# What an op is compiled to: a unit that checks all arguments but the scale; whether a call goes the
# direct path, and whether that can start from one value; units that compute on either path, without
# threads and with them; and a function that computes in the types of scalar that these are not
# written for.
Kernels = namedtuple("Kernels", "check is_direct can_start direct sorted plain")


@kernel
def is_direct_gemv(out, W):
    return is_direct(W.shape[2], W.shape[3])


@kernel
def is_direct_outer(out, x):
    return is_direct(out.shape[2], out.shape[3])


@kernel
def gemv_can_start(o, W, h):
    return is_direct_gemv(o, W) and writes_all(h, W)


@kernel
def never_starts(o, first, second):
    return False


GEMV_KERNELS = Kernels(
    CHECK_GEMV,
    is_direct_gemv,
    gemv_can_start,
    (RUN_DIRECT_GEMV, RUN_DIRECT_GEMV_PARALLEL),
    (RUN_GEMV, RUN_GEMV_PARALLEL),
    plain_gemv,
)
OUTER_KERNELS = Kernels(
    CHECK_OUTER,
    is_direct_outer,
    never_starts,
    (RUN_DIRECT_OUTER, RUN_DIRECT_OUTER_PARALLEL),
    (RUN_OUTER, RUN_OUTER_PARALLEL),
    plain_outer,
)


def views_of(node):
    """Compiled code that views the arrays and the indices of a call."""
    first_known, second_known = known_of_indices(node)

    @kernel
    def view_all(out, first, second, first_index, second_index):
        indices = view_index(first_index, first_known), view_index(second_index, second_known)
        return (view(out), view(first), view(second), *indices)

    return view_all


def checks_of(op, unit):
    """Compiled code that raises what a unit finds wrong with the views of a call."""
    number, ready_check, check = OPS.index(op.signature.op), unit.ready, unit.call
    of_any = known_of_any(op)
    padding = int(of_any.is_padded), of_any.padding

    @kernel
    def raise_what_is_wrong(views):
        ready_check(0, 0)
        fault = check(0, 0, views)
        if fault[0] != NO_FAULT:
            ready_fail(0, 0)
            call_fail(0, 0, (number, fault, padding))

    return raise_what_is_wrong


def funcify(op, node, kernels):
    """Compiled code that checks, and computes: function(o, array, array, index, index, scale)."""
    inplace, one = op.inplace, one_of(node)
    view_all, raise_what_is_wrong = views_of(node), checks_of(op, kernels.check)
    direct, by_block = kernels.direct[config.openmp], kernels.sorted[config.openmp]
    ready_direct, call_direct = direct.ready, direct.call
    ready_sorted, call_sorted = by_block.ready, by_block.call
    goes_direct, plain = kernels.is_direct, kernels.plain
    are_padded = any(known.is_padded for known in known_of_indices(node))
    can_start = never_starts if inplace or are_padded else kernels.can_start
    threads, of_any = allowed_threads(), known_of_any(op)

    @kernel
    def compute(out, first, second, first_index, second_index, scale, start):
        views = view_all(out, first, second, first_index, second_index)
        if goes_direct(out, first):
            ready_direct(scale, 0)
            call_direct(scale, 0, (*views, scale, start, threads()))
        else:
            ready_sorted(scale, 0)
            call_sorted(scale, 0, (*views, scale, threads()))

    @kernel
    def compute_plainly(out, first, second, first_index, second_index, scale, start):
        plain(out, first, second, first_index, second_index, scale, of_any)

    if one.dtype.name not in FAST:
        compute, can_start = compute_plainly, never_starts

    @kernel
    def checked(o, first, second, first_index, second_index, scale):
        raise_what_is_wrong(view_all(o, first, second, first_index, second_index))
        start = 0
        if inplace:
            out = destination(o)
        elif is_one_element(view(o)) and can_start(o, first, second):
            # What starts from one value everywhere need not be written first and read again.
            out, start = np.empty(o.shape, o.dtype), address_of(o)
        else:
            out = o.copy()
        if scale != 0:
            compute(out, first, second, first_index, second_index, scale, start)
        return out

    return checked


def allowed_threads():
    """Compiled code that tells how many threads a call may use."""
    if config.openmp:
        start_threads()
    return threads_allowed if config.openmp else one_thread


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
    checked = funcify(op, node, GEMV_KERNELS)
    one = one_of(node)

    @kernel
    def sparse_block_gemv(o, W, h, inputIdx, outputIdx):
        return checked(o, W, h, inputIdx, outputIdx, one)

    return sparse_block_gemv, cache_key(node)


@register_funcify_default_op_cache_key(SparseBlockOuter)
def numba_funcify_SparseBlockOuter(op, node, **kwargs):
    checked = funcify(op, node, OUTER_KERNELS)

    @kernel
    def sparse_block_outer(o, x, y, xIdx, yIdx, alpha):
        return checked(o, x, y, xIdx, yIdx, alpha.item())

    return sparse_block_outer, cache_key(node)


@register_funcify_default_op_cache_key(SparseBlockGradient)
def numba_funcify_SparseBlockGradient(op, node, **kwargs):
    one, threads = one_of(node), allowed_threads()
    view_all, raise_what_is_wrong = views_of(node), checks_of(op, CHECK_OUTER)
    run = (RUN_GRADIENT, RUN_GRADIENT_PARALLEL)[config.openmp]
    ready_plan, call_plan = PLAN_GRADIENT.ready, PLAN_GRADIENT.call
    ready_run, call_run = run.ready, run.call

    @kernel
    def compute(W, x, y, xIdx, yIdx, alpha):
        views = view_all(W, x, y, xIdx, yIdx)
        record = np.empty(OUTER_WORDS, np.int64)
        outer = address_of(record)
        ready_plan(alpha, 0)
        tables = call_plan(alpha, 0, (outer, *views, alpha, threads()))
        count = outer_at(outer, 0, alpha).plan.groups
        inputBlock, outputBlock = np.empty(count, np.int64), np.empty(count, np.int64)
        values = np.zeros((count, x.shape[2], y.shape[2]), x.dtype)
        to = address_of(inputBlock), address_of(outputBlock), view(values)
        ready_run(alpha, 0)
        call_run(alpha, 0, (outer, *to, alpha))
        keep_alive(record)
        keep_alive(tables)
        return inputBlock, outputBlock, values

    of_any = known_of_any(op)

    @kernel
    def compute_plainly(W, x, y, xIdx, yIdx, alpha):
        return plain_gradient(W, x, y, xIdx, yIdx, alpha, of_any)

    if one.dtype.name not in FAST:
        compute = compute_plainly

    @kernel
    def sparse_block_gradient(W, x, y, xIdx, yIdx, alpha):
        raise_what_is_wrong(view_all(W, x, y, xIdx, yIdx))
        return compute(W, x, y, xIdx, yIdx, alpha.item())

    return sparse_block_gradient, cache_key(node)


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
    checked = funcify(op.outer, outer_node, OUTER_KERNELS)

    @kernel
    def in_blocks(whole, part, x, y, xIdx, yIdx, alpha):
        result = checked(part, x, y, xIdx, yIdx, alpha.item())
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
