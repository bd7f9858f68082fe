"""gemv if all examples use the same blocks: the sums over a window stay in registers."""

from blocksparse_ops.kernels.numba.compile import kernel
from blocksparse_ops.kernels.numba.memory import set_word, word_at
from blocksparse_ops.kernels.numba.panel import STRIP_DEPTH, ceil_div, panel_of, size_of
from blocksparse_ops.kernels.numba.prefetch import NOTHING, spread_prefetch
from blocksparse_ops.kernels.numba.product import block_address, region_of, right_of, set_task
from blocksparse_ops.kernels.numba.scratch import factor_at
from blocksparse_ops.kernels.numba.split import Share, share_of
from blocksparse_ops.kernels.numba.tile import MOST_ADDRESSES, add_products_of_rows


@kernel
def work_shared(p, thread, scratch):
    by_example = p.batch >= p.outputs
    examples, outputs = Share(0, p.batch), Share(0, p.outputs)
    if by_example:
        examples = share_of(p.batch, thread, p.threads)
    else:
        outputs = share_of(p.outputs, thread, p.threads)
    if examples.first == examples.last:
        return
    # Some positions of the input window, and some of their depth: no more than a chunk together.
    together = max(1, p.chunk // max(1, p.depth))
    for v in range(0, p.inputs, together):
        window = Share(v, min(v + together, p.inputs))
        for first in range(0, p.depth, p.chunk):
            depth = Share(first, min(first + p.chunk, p.depth))
            for w in range(outputs.first, outputs.last):
                for number in range(p.panels.count):
                    panel = panel_of(p.panels, number, p)
                    set_factors(p, examples, w, outputs.last, window, depth, panel, scratch)
                    multiply_window(p, examples, w, window, depth, panel, scratch)


@kernel
def shared_block(p, v, w):
    return block_address(p, word_at(p.input, v), word_at(p.output, w))


@kernel
def set_factors(p, examples, w, end, window, depth, panel, scratch):
    """The blocks of a window and of one output position.

    Meanwhile those of the next position are prefetched.
    """
    length = depth.last - depth.first
    tiles = ceil_div(examples.last - examples.first, panel.rows)
    packed = scratch.packed
    for v in range(window.first, window.last):
        factor = factor_at(scratch.factors, v - window.first, p)
        region = NOTHING
        if w + 1 < end:
            columns = panel.first, panel.first + panel.columns
            region = region_of(p, shared_block(p, v, w + 1), depth.first, length, *columns)
        spread_prefetch(factor.prefetch, region, tiles * ceil_div(length, STRIP_DEPTH))
        block = shared_block(p, v, w)
        right = right_of(p, block, depth.first, length, panel, packed, factor.prefetch)
        factor.start, factor.step = right.start, right.step
        packed += length * panel.width * size_of(p)


@kernel
def multiply_window(p, examples, w, window, depth, panel, scratch):
    first_h = p.h.data + window.first * p.h.strides[1] + depth.first * p.h.strides[2]
    first_out = p.out.data + w * p.out.strides[1] + panel.first * p.out.strides[2]
    blocks, length = window.last - window.first, depth.last - depth.first
    set_task(p, scratch.task, scratch.factors, blocks, length, panel)
    for first in range(examples.first, examples.last, MOST_ADDRESSES):
        rows = min(examples.last - first, MOST_ADDRESSES)
        for m in range(rows):
            set_word(scratch.left, m, first_h + (first + m) * p.h.strides[0])
            set_word(scratch.to, m, first_out + (first + m) * p.out.strides[0])
        add_products_of_rows(panel, rows, scratch.left, scratch.to, scratch.task)
