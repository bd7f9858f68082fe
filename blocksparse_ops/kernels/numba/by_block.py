"""gemv block by block: each block in use is read once, for all rows that it multiplies."""

from collections import namedtuple

import numpy as np

from blocksparse_ops.kernels.numba.arrays import prefetch_line
from blocksparse_ops.kernels.numba.compile import kernel
from blocksparse_ops.kernels.numba.memory import (
    fill_zeros,
    locate_rows,
    set_word,
    take,
    word_at,
)
from blocksparse_ops.kernels.numba.panel import (
    STRIP_DEPTH,
    TILE_ROWS,
    ceil_div,
    lanes_of,
    panel_of,
    panel_start,
)
from blocksparse_ops.kernels.numba.plan import (
    block_of,
    call_make_plan,
    first_triple,
    ready_make_plan,
    row_of,
    set_side,
    take_plan,
)
from blocksparse_ops.kernels.numba.prefetch import NOTHING, spread_prefetch
from blocksparse_ops.kernels.numba.product import block_address, region_of, right_of, set_task
from blocksparse_ops.kernels.numba.records import address_of_record
from blocksparse_ops.kernels.numba.scratch import factor_at
from blocksparse_ops.kernels.numba.split import Share, panels_of_share, share_of
from blocksparse_ops.kernels.numba.tile import MOST_ADDRESSES, add_products_of_rows

# Not a literal, for which Numba would compile once more what it is handed to.
START = np.int64(0)

# What a thread works on: all, some panels of output blocks, or some examples.
ALL, PANELS, EXAMPLES = range(3)
Portion = namedtuple("Portion", "of share")

# The triples and the panels of a block that a thread works on; none without a block.
Group = namedtuple("Group", "block number first last first_panel end_panel")
NO_GROUP = Group(0, 0, 0, 0, 0, 0)


@kernel
def take_by_block(p, memory):
    """All tables that plan_by_block fills."""
    b = p.by_block
    # Blocks are read fastest in the order of memory. But threads contend for the cache lines that
    # rows of the output share (false sharing), least with output blocks as the major key. Both
    # orders give the same bits: the sort is stable, so a row's sum takes its blocks in the same
    # order.
    output_is_major = p.threads > 1 or abs(p.W.strides[0]) < abs(p.W.strides[1])
    b.input, b.output = (1, 0) if output_is_major else (0, 1)
    first, second = b.plan.first, b.plan.second
    input_side, output_side = (second, first) if output_is_major else (first, second)
    set_side(input_side, p.batch * p.inputs, p.inputs, p.W.shape[0], p.input_is_padded)
    set_side(output_side, p.batch * p.outputs, p.outputs, p.W.shape[1], p.output_is_padded)
    take_plan(b.plan, memory)
    b.h_rows, b.out_rows = take(memory, input_side.rows), take(memory, output_side.rows)
    b.triples_before = take(memory, p.W.shape[1] + 1 if p.threads > 1 else 0)


@kernel
def plan_by_block(p):
    """Fill what all threads read."""
    b = p.by_block
    first, second = b.plan.first, b.plan.second
    # Now that the indices are counted, which may be used where they lie.
    first.blocks_of_rows, second.blocks_of_rows = p.input, p.output
    if b.output == 0:
        first.blocks_of_rows, second.blocks_of_rows = p.output, p.input
    ready_make_plan(0, 0)
    call_make_plan(0, 0, (address_of_record(b.plan),))
    locate_rows(p.h, b.h_rows)
    locate_rows(p.out, b.out_rows)
    if p.threads > 1:
        b.too_few_panels = count_triples(p, b) * p.panels.count < p.threads


@kernel
def count_triples(p, b):
    """Count the triples that stand before each output block, and return the blocks in use."""
    before, blocks = b.triples_before, p.W.shape[1]
    fill_zeros(before, blocks + 1)
    for g in range(b.plan.groups):
        after = block_of(b.plan, g, b.output) + 1
        count = first_triple(b.plan, g + 1) - first_triple(b.plan, g)
        set_word(before, after, word_at(before, after) + count)
    used = 0
    for j in range(blocks):
        used += word_at(before, j + 1) > 0
        set_word(before, j + 1, word_at(before, j + 1) + word_at(before, j))
    return used


@kernel
def work_by_block(p, thread, scratch, multiply_group):
    b = p.by_block
    portion = portion_of(p, b, thread)
    here = next_group(p, b, START, portion)
    while here.block != 0:
        following = next_group(p, b, here.number + 1, portion)
        multiply_group(p, here, following, scratch)
        here = following


@kernel
def portion_of(p, b, thread):
    if p.threads == 1:
        return Portion(ALL, Share(0, 0))
    if b.too_few_panels:
        return Portion(EXAMPLES, share_of(p.batch, thread, p.threads))
    triples = word_at(b.triples_before, p.W.shape[1])
    return Portion(PANELS, share_of(triples * p.panels.count, thread, p.threads))


@kernel
def next_group(p, b, g, portion):
    """The first group from number g on that a portion has some of."""
    while g < b.plan.groups:
        rows = Share(first_triple(b.plan, g), first_triple(b.plan, g + 1))
        panels = Share(0, p.panels.count)
        if portion.of == PANELS:
            j = block_of(b.plan, g, b.output)
            before = word_at(b.triples_before, j)
            triples = word_at(b.triples_before, j + 1) - before
            panels = panels_of_share(portion.share, p.panels.count, before, triples)
        elif portion.of == EXAMPLES:
            rows = Share(
                first_triple_from(b, rows, portion.share.first * p.outputs),
                first_triple_from(b, rows, portion.share.last * p.outputs),
            )
        if rows.first < rows.last and panels.first < panels.last:
            block = block_address(p, block_of(b.plan, g, b.input), block_of(b.plan, g, b.output))
            return Group(block, g, rows.first, rows.last, panels.first, panels.last)
        g += 1
    return NO_GROUP


@kernel
def first_triple_from(b, rows, output_row):
    """A group's first triple of this output row or a later one: they stand in its order, because
    the sort is stable."""
    low, high = rows.first, rows.last
    while low < high:
        middle = (low + high) // 2
        if row_of(b.plan, middle, b.output) < output_row:
            low = middle + 1
        else:
            high = middle
    return low


@kernel
def multiply_by_chunk(p, here, following, scratch):
    """In the order of a row-major block in memory: all panels of a chunk before the next chunk."""
    factor = factor_at(scratch.factors, 0, p)
    tiles = (here.end_panel - here.first_panel) * ceil_div(here.last - here.first, TILE_ROWS)
    first = START
    while first < p.depth:  # a range would divide
        length = min(p.depth - first, p.chunk)
        after = first + length
        group, row = (here, after) if after < p.depth else (following, START)
        region = region_of_panels(p, group, row, p.chunk, group.first_panel, group.end_panel)
        spread_prefetch(factor.prefetch, region, tiles * ceil_div(length, STRIP_DEPTH))
        for number in range(here.first_panel, here.end_panel):
            multiply(p, here, first, length, panel_of(p.panels, number, p), scratch)
        first += length


@kernel
def multiply_by_panel(p, here, following, scratch):
    """In the order of a column-major block in memory: all chunks of a panel before the next."""
    factor = factor_at(scratch.factors, 0, p)
    for number in range(here.first_panel, here.end_panel):
        panel = panel_of(p.panels, number, p)
        if number + 1 < here.end_panel:
            region = whole_panel(p, here, number + 1)
        else:
            region = whole_panel(p, following, following.first_panel)
        tiles = ceil_div(here.last - here.first, TILE_ROWS)
        squares = ceil_div(panel.columns * p.depth, lanes_of(p) ** 2)
        spread_prefetch(factor.prefetch, region, tiles * ceil_div(p.depth, STRIP_DEPTH) + squares)
        first = START
        while first < p.depth:
            length = min(p.depth - first, p.chunk)
            multiply(p, here, first, length, panel, scratch)
            first += length


@kernel
def whole_panel(p, group, number):
    return region_of_panels(p, group, START, p.depth, number, number + 1)


@kernel
def region_of_panels(p, group, row, rows, first_panel, end_panel):
    """Some rows of some panels of a group's block, to prefetch."""
    if group.block == 0:
        return NOTHING
    start, end = panel_start(p.panels, first_panel, p), panel_start(p.panels, end_panel, p)
    return region_of(p, group.block, row, rows, start, end)


@kernel
def multiply(p, group, first, length, panel, scratch):
    """Add the products of some depth of a group's rows and a panel."""
    b, factor = p.by_block, factor_at(scratch.factors, 0, p)
    right = right_of(p, group.block, first, length, panel, scratch.packed, factor.prefetch)
    factor.start, factor.step = right.start, right.step
    set_task(p, scratch.task, scratch.factors, 1, length, panel)
    left_offset, to_offset = first * p.h.strides[2], panel.first * p.out.strides[2]
    for t in range(group.first, group.last, MOST_ADDRESSES):
        rows = min(group.last - t, MOST_ADDRESSES)
        for m in range(rows):
            row = word_at(b.h_rows, row_of(b.plan, t + m, b.input)) + left_offset
            prefetch_line(row)
            set_word(scratch.left, m, row)
            out = word_at(b.out_rows, row_of(b.plan, t + m, b.output))
            set_word(scratch.to, m, out + to_offset)
        add_products_of_rows(panel, rows, scratch.left, scratch.to, scratch.task)
