"""o[n, w] += sum_v h[n, v] @ W[inputIdx[n, v], outputIdx[n, w]]"""

from collections import namedtuple

from numba import prange
from numba.core.types import NamedTuple, boolean, int64, void

from blocksparse_ops.kernels.numba.arrays import INDEX_ARRAY, array_type, keep_alive
from blocksparse_ops.kernels.numba.by_block import (
    BY_BLOCK,
    NOT_PLANNED,
    by_block_words,
    plan_by_block,
    work_by_block,
)
from blocksparse_ops.kernels.numba.check import FAIL, FAULT, check, count_from_start
from blocksparse_ops.kernels.numba.choose import pattern_is_shared, threads_for
from blocksparse_ops.kernels.numba.compile import Unit, kernel
from blocksparse_ops.kernels.numba.memory import (
    keep,
    new_memory,
    open_memory,
    record_of,
    take,
)
from blocksparse_ops.kernels.numba.pack import TRANSPOSE
from blocksparse_ops.kernels.numba.panel import MOST_DEPTH, chunk_depth, cut_columns
from blocksparse_ops.kernels.numba.plan import MAKE_PLAN
from blocksparse_ops.kernels.numba.product import Product, product_type
from blocksparse_ops.kernels.numba.scratch import scratch_of, scratch_words
from blocksparse_ops.kernels.numba.shared import work_shared
from blocksparse_ops.kernels.numba.tile import ADD_PRODUCTS, FACTOR_BYTES
from blocksparse_ops.signature import GEMV

AGREEMENTS = GEMV.equal_sizes

# What all threads work on: Numba hands no tuple of tuples to its threads, so they get its address.
Gemv = namedtuple("Gemv", "product by_block shared threads scratch")


def gemv_type(scalar):
    return NamedTuple((product_type(scalar), BY_BLOCK, boolean, int64, int64), Gemv)


gemv_words, read_gemv = record_of(gemv_type)


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
    batch, inputs, outputs = h.shape[0], h.shape[1], out.shape[1]
    depth, columns = W.shape[2], W.shape[3]
    index_array = new_memory(batch * (inputs + outputs))
    index_memory = open_memory(index_array)
    p = Product(
        W,
        h,
        out,
        batch,
        inputs,
        outputs,
        depth,
        columns,
        cut_columns(columns, scale),
        chunk_depth(columns, scale),
        count_from_start(inputIdx, W.shape[0], index_memory),
        count_from_start(outputIdx, W.shape[1], index_memory),
        scale,
    )
    threads = threads_for(batch * inputs * outputs, depth * columns, most_threads)
    shared = pattern_is_shared(p)
    words = scratch_words(threads, factor_bytes(shared), scale)
    if not shared:
        words += by_block_words(p, threads)
    array = new_memory(words + gemv_words(scale))
    memory = open_memory(array)
    scratch = take(memory, scratch_words(threads, factor_bytes(shared), scale))
    b = NOT_PLANNED if shared else plan_by_block(p, threads, memory)
    gemv = keep(memory, Gemv(p, b, shared, threads, scratch), gemv_words(scale))
    if threads == 1:  # a prange would wake them all the same
        call_work_gemv(scale, (gemv, 0, scale))
    else:
        for thread in prange(threads):
            call_work_gemv(scale, (gemv, thread, scale))
    keep_alive(index_array)
    keep_alive(array)


def work_gemv(gemv, thread, scale):
    """The part of one thread. All parts may be worked on side by side."""
    p, b, shared, threads, scratch = read_gemv(gemv, scale)
    scratch = scratch_of(scratch, thread, threads, factor_bytes(shared), scale)
    if shared:
        work_shared(p, thread, threads, scratch)
    else:
        work_by_block(p, b, thread, threads, scratch)


def arguments(scalar):
    return (array_type(3), array_type(4), array_type(3), INDEX_ARRAY, INDEX_ARRAY, scalar)


def work_signature(scalar):
    return void(int64, int64, scalar)


def run_signature(scalar):
    return void(*arguments(scalar), int64)


CHECK_GEMV = Unit(check_gemv, lambda scalar: FAULT(*arguments(scalar)), uses=[FAIL])
WORK_GEMV = Unit(
    work_gemv, lambda scalar: void(int64, int64, scalar), uses=[ADD_PRODUCTS, TRANSPOSE]
)
RUN_GEMV, RUN_GEMV_PARALLEL = (
    Unit(run_gemv, run_signature, uses=[MAKE_PLAN, WORK_GEMV], parallel=parallel)
    for parallel in (False, True)
)
call_work_gemv = WORK_GEMV.call
