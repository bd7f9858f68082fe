"""The product if all examples use the same blocks: what a window adds is summed in registers."""

from blocksparse_ops.kernels.numba.compile import kernel
from blocksparse_ops.kernels.numba.memory import set_word, word_at
from blocksparse_ops.kernels.numba.panel import STRIP_DEPTH, ceil_div, panel_of, size_of
from blocksparse_ops.kernels.numba.prefetch import NOTHING, start_fetching
from blocksparse_ops.kernels.numba.product import block_address, part_of, right_of
from blocksparse_ops.kernels.numba.split import Share, share_of
from blocksparse_ops.kernels.numba.tile import (
    FACTOR_BYTES,
    FETCHING,
    MOST_ADDRESSES,
    add_products_of_rows,
    set_right,
    set_task,
)


@kernel
def work_shared(p, thread, threads, scratch):
    by_example = p.batch >= p.outputs
    examples, outputs = Share(0, p.batch), Share(0, p.outputs)
    if by_example:
        examples = share_of(p.batch, thread, threads)
    else:
        outputs = share_of(p.outputs, thread, threads)
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
                    panel = panel_of(p.panels, number, p.scale)
                    set_factors(p, examples, w, outputs.last, window, depth, panel, scratch)
                    multiply_window(p, examples, w, window, depth, panel, scratch)


@kernel
def shared_block(p, v, w):
    return block_address(p, word_at(p.input, v), word_at(p.output, w))


@kernel
def set_factors(p, examples, w, end, window, depth, panel, scratch):
    """The blocks of a window and of one output position.

    While these are worked on, those of the next position are fetched.
    """
    length = depth.last - depth.first
    tiles = ceil_div(examples.last - examples.first, panel.rows)
    times = tiles * ceil_div(length, STRIP_DEPTH)
    panel_bytes = length * panel.width * size_of(p.scale)
    for v in range(window.first, window.last):
        position = v - window.first
        factor = scratch.more + position * FACTOR_BYTES
        region = NOTHING
        if w + 1 < end:
            columns = panel.first, panel.first + panel.columns
            region = part_of(p, shared_block(p, v, w + 1), depth.first, length, *columns)
        start_fetching(factor + FETCHING, region, times)
        right = right_of(
            p,
            shared_block(p, v, w),
            depth.first,
            length,
            panel,
            scratch.panel + position * panel_bytes,
            factor + FETCHING,
        )
        set_right(factor, right)


@kernel
def multiply_window(p, examples, w, window, depth, panel, scratch):
    first_h = p.h.data + window.first * p.h.strides[1] + depth.first * p.h.strides[2]
    first_out = p.out.data + w * p.out.strides[1] + panel.first * p.out.strides[2]
    steps = p.h.strides[2], p.h.strides[1]
    blocks, length = window.last - window.first, depth.last - depth.first
    columns, to_step = panel.columns, p.out.strides[2]
    set_task(scratch.task, steps, scratch.more, blocks, length, to_step, columns, p.scale)
    for first in range(examples.first, examples.last, MOST_ADDRESSES):
        rows = min(examples.last - first, MOST_ADDRESSES)
        for m in range(rows):
            set_word(scratch.left, m, first_h + (first + m) * p.h.strides[0])
            set_word(scratch.to, m, first_out + (first + m) * p.out.strides[0])
        add_products_of_rows(panel, rows, scratch.left, scratch.to, scratch.task, p.scale)
