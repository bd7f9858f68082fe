"""o[b, w] += sum_v h[b, v] @ W[inputIdx[b, v], outputIdx[b, w]]"""

from numba import prange
from numba.core.types import UniTuple, boolean, int64, void

from blocksparse_ops.kernels.numba.arrays import (
    INDEX_ARRAY,
    address_of,
    array_type,
    keep_alive,
)
from blocksparse_ops.kernels.numba.by_block import BY_BLOCK, plan_by_block, work_by_block
from blocksparse_ops.kernels.numba.check import Indices, check, count_from_start
from blocksparse_ops.kernels.numba.choose import pattern_is_shared, threads_for
from blocksparse_ops.kernels.numba.compile import Unit, kernel
from blocksparse_ops.kernels.numba.pack import TRANSPOSE
from blocksparse_ops.kernels.numba.panel import MOST_DEPTH, chunk_depth, cut_columns, lanes_of
from blocksparse_ops.kernels.numba.plan import MAKE_PLAN
from blocksparse_ops.kernels.numba.product import Product, product_type
from blocksparse_ops.kernels.numba.scratch import scratch_memory, scratch_of
from blocksparse_ops.kernels.numba.shared import work_shared
from blocksparse_ops.kernels.numba.tile import ADD_PRODUCTS, FACTOR_BYTES
from blocksparse_ops.signature import GEMV

AGREEMENTS = GEMV.agreements


def check_gemv(o, W, h, inputIdx, outputIdx, scale):
    """Return a record of what is wrong."""
    sizes = o.shape + W.shape + h.shape + inputIdx.shape + outputIdx.shape
    triples = (h.shape[0], h.shape[1], o.shape[1])
    return check(sizes, AGREEMENTS, triples, inputIdx, W.shape[0], outputIdx, W.shape[1])


@kernel
def factor_bytes(shared):
    return (MOST_DEPTH if shared else 1) * FACTOR_BYTES


def run_gemv(out, W, h, inputIdx, outputIdx, scale, most_threads):
    """Add to `out`, which holds the initial values; all has been checked."""
    indices = Indices(
        count_from_start(inputIdx, W.shape[0]), count_from_start(outputIdx, W.shape[1])
    )
    p = Product(
        W,
        h,
        out,
        h.shape[0],
        h.shape[1],
        out.shape[1],
        W.shape[2],
        W.shape[3],
        cut_columns(W.shape[3], lanes_of(scale)),
        chunk_depth(W.shape[3], scale),
        address_of(indices.input),
        address_of(indices.output),
        scale,
    )
    threads = threads_for(p.batch * p.inputs * p.outputs, p.depth * p.columns, most_threads)
    shared = pattern_is_shared(indices, p.batch)
    memory = scratch_memory(threads, factor_bytes(shared), scale)
    start = address_of(memory)
    rows = 0 if shared else p.batch
    planned = indices.input[: rows * p.inputs], indices.output[: rows * p.outputs]
    b, kept = plan_by_block(p, Indices(*planned), threads)
    for thread in prange(threads):
        call_work_gemv(scale, (p, b, shared, thread, threads, start))
    keep_alive((indices, kept, memory))


def work_gemv(p, b, shared, thread, threads, memory):
    """The part of one thread. All parts may be worked on side by side."""
    scratch = scratch_of(memory, thread, factor_bytes(shared), p.scale)
    if shared:
        work_shared(p, thread, threads, scratch)
    else:
        work_by_block(p, b, thread, threads, scratch)


def arguments(scalar):
    return (array_type(3), array_type(4), array_type(3), INDEX_ARRAY, INDEX_ARRAY, scalar)


def work_signature(scalar):
    return void(product_type(scalar), BY_BLOCK, boolean, int64, int64, int64)


def run_signature(scalar):
    return void(*arguments(scalar), int64)


CHECK_GEMV = Unit(check_gemv, lambda scalar: UniTuple(int64, 6)(*arguments(scalar)))
WORK_GEMV = Unit(work_gemv, work_signature, uses=[ADD_PRODUCTS, TRANSPOSE])
RUN_GEMV, RUN_GEMV_PARALLEL = (
    Unit(run_gemv, run_signature, uses=[MAKE_PLAN, WORK_GEMV], parallel=parallel)
    for parallel in (False, True)
)
call_work_gemv = WORK_GEMV.call
