"""o[n, w] += sum_v h[n, v] @ W[inputIdx[n, v], outputIdx[n, w]]"""

from numba.core.types import int64, void

from blocksparse_ops.kernels.numba.arrays import INDEX_ARRAY, array_type
from blocksparse_ops.kernels.numba.by_block import (
    multiply_by_chunk,
    multiply_by_panel,
    plan_by_block,
    take_by_block,
    work_by_block,
)
from blocksparse_ops.kernels.numba.check import CALL, check, count_from_start, raise_fault_of
from blocksparse_ops.kernels.numba.choose import pattern_is_shared, threads_for
from blocksparse_ops.kernels.numba.compile import Unit, kernel
from blocksparse_ops.kernels.numba.memory import allocate_tables, free_tables, take
from blocksparse_ops.kernels.numba.pack import ready_transpose
from blocksparse_ops.kernels.numba.panel import MOST_DEPTH, chunk_depth, cut_columns, size_of
from blocksparse_ops.kernels.numba.product import PRODUCT, is_column_major
from blocksparse_ops.kernels.numba.records import address_of_record
from blocksparse_ops.kernels.numba.scratch import scratch_of, take_scratches
from blocksparse_ops.kernels.numba.shared import work_shared
from blocksparse_ops.kernels.numba.threads import Work
from blocksparse_ops.kernels.numba.tile import ready_tiles
from blocksparse_ops.signature import GEMV

EQUAL_SIZES = GEMV.equal_sizes

# The paths.
BY_CHUNK, BY_PANEL, SHARED = range(3)

new_product, product_at = PRODUCT.new, PRODUCT.at


def check_gemv(o, W, h, inputIdx, outputIdx, call):
    """Raise what is wrong."""
    sizes = o.shape + W.shape + h.shape + inputIdx.shape + outputIdx.shape
    triples = (h.shape[0], h.shape[1], o.shape[1])
    fault = check(sizes, EQUAL_SIZES, triples, inputIdx, W.shape[0], outputIdx, W.shape[1])
    raise_fault_of(fault, call)


@kernel
def set_product(p, out, W, h, inputIdx, outputIdx, scale, most_threads):
    p.W, p.h, p.out, p.scale = W, h, out, scale
    p.input_is_padded, p.output_is_padded = inputIdx.known.is_padded, outputIdx.known.is_padded
    p.batch, p.inputs, p.outputs = h.shape[0], h.shape[1], out.shape[1]
    p.depth, p.columns = W.shape[2], W.shape[3]
    p.panels, p.chunk = cut_columns(p.columns, p), chunk_depth(p.columns, p)
    p.threads = threads_for(p.batch * p.inputs * p.outputs, p.depth * p.columns, most_threads)


@kernel
def take_product(p, memory):
    """All tables of a call, those for sharing and for going by block."""
    p.scratches = take_scratches(memory, p.threads, MOST_DEPTH, 0, p)
    p.input = take(memory, p.batch * p.inputs)
    p.output = take(memory, p.batch * p.outputs)
    take_by_block(p, memory)


@kernel
def choose_path(p):
    """The path of a call, with all that its threads need."""
    path = SHARED if pattern_is_shared(p) else BY_PANEL if is_column_major(p) else BY_CHUNK
    if path != SHARED:
        plan_by_block(p)
    ready_tiles(p.panels, p)
    if p.W.strides[3] != size_of(p) == p.W.strides[2]:
        ready_transpose(p, 0)
    return path


def run_gemv(out, W, h, inputIdx, outputIdx, scale, most_threads):
    """Add to `out`, which holds the initial values; all has been checked."""
    p = new_product(scale)
    set_product(p, out, W, h, inputIdx, outputIdx, scale, most_threads)
    array = allocate_tables(p, take_product)
    p.input = count_from_start(inputIdx, W.shape[0], p.input)
    p.output = count_from_start(outputIdx, W.shape[1], p.output)
    work_gemv(scale, choose_path(p), address_of_record(p), p.threads)
    free_tables(p, take_product, array)


# The work of one thread; all may run at once.


def by_chunk(product, thread, scale):
    p = product_at(product, 0, scale)
    scratch = scratch_of(p.scratches, thread, p.threads, MOST_DEPTH, 0, p)
    work_by_block(p, thread, scratch, multiply_by_chunk)


def by_panel(product, thread, scale):
    p = product_at(product, 0, scale)
    scratch = scratch_of(p.scratches, thread, p.threads, MOST_DEPTH, 0, p)
    work_by_block(p, thread, scratch, multiply_by_panel)


def shared(product, thread, scale):
    p = product_at(product, 0, scale)
    work_shared(p, thread, scratch_of(p.scratches, thread, p.threads, MOST_DEPTH, 0, p))


ARGUMENTS = (array_type(3), array_type(4), array_type(3), INDEX_ARRAY, INDEX_ARRAY)

CHECK_GEMV = Unit(check_gemv, lambda _: void(*ARGUMENTS, CALL))
RUN_GEMV = Unit(run_gemv, lambda scalar: void(*ARGUMENTS, scalar, int64))
work_gemv = Work([by_chunk, by_panel, shared]).run
