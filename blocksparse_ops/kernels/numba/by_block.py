"""The product block by block: each is read once for all the rows that use it."""

from collections import namedtuple

import numpy as np
from numba.core.types import NamedTuple, boolean, int64

from blocksparse_ops.kernels.numba.arrays import prefetch
from blocksparse_ops.kernels.numba.compile import kernel
from blocksparse_ops.kernels.numba.memory import (
    row_addresses,
    set_word,
    take_zeros,
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
    PLAN,
    Plan,
    Side,
    block_of,
    call_make_plan,
    first_triple,
    plan_words,
    row_of,
)
from blocksparse_ops.kernels.numba.prefetch import NOTHING, start_fetching
from blocksparse_ops.kernels.numba.product import (
    block_address,
    columns_lie_together,
    part_of,
    right_of,
)
from blocksparse_ops.kernels.numba.split import Share, panels_of_share, share_of
from blocksparse_ops.kernels.numba.tile import (
    FETCHING,
    MOST_ADDRESSES,
    add_products_of_rows,
    set_right,
    set_task,
)

# A plan, on which of its sides the input and the output are, and where their rows start; and, for
# threads, how many triples stand before each output block, and whether there are too few panels to
# give each thread one.
ByBlock = namedtuple("ByBlock", "plan input output h_rows out_rows triples_before too_few_panels")
NOT_PLANNED = ByBlock(Plan(0, 0, 0, 0), 0, 0, 0, 0, 0, False)
BY_BLOCK = NamedTuple((PLAN, *[int64] * 5, boolean), ByBlock)

# Not a literal, for which Numba would compile once more what it is handed to.
START = np.int64(0)

# What a thread works on: all, some panels of output blocks, or some examples.
ALL, PANELS, EXAMPLES = range(3)
Work = namedtuple("Work", "kind share")

# The triples and the panels of a block that are to be worked on: none if there is no block.
Group = namedtuple("Group", "block number first last first_panel end_panel")
NO_GROUP = Group(0, 0, 0, 0, 0, 0)


@kernel
def by_block_words(p, threads):
    """The memory that plan_by_block takes."""
    input_side, output_side = sides_of(p)
    blocks = p.W.shape[1] if threads > 1 else 0
    rows = input_side.rows + output_side.rows
    # Either order, whichever takes more.
    planned = max(plan_words(input_side, output_side), plan_words(output_side, input_side))
    return planned + rows + blocks + 1


@kernel
def sides_of(p):
    input_side = Side(p.input, p.batch * p.inputs, p.inputs, p.W.shape[0])
    return input_side, Side(p.output, p.batch * p.outputs, p.outputs, p.W.shape[1])


@kernel
def plan_by_block(p, threads, memory):
    """What all threads need."""
    input_side, output_side = sides_of(p)
    # Blocks in the order in which they lie are read faster than in any other. But rows of the
    # output share lines of memory, which threads take from each other: so each row is worked on
    # within a short time. A row's sum takes its blocks in the same order either way.
    output_first = threads > 1 or abs(p.W.strides[0]) < abs(p.W.strides[1])
    if output_first:
        plan = call_make_plan(p.scale, (output_side, input_side, memory))
    else:
        plan = call_make_plan(p.scale, (input_side, output_side, memory))
    output = 0 if output_first else 1
    blocks = p.W.shape[1] if threads > 1 else 0
    before = count_triples(plan, output, blocks, memory)
    used = 0
    for j in range(blocks):
        used += word_at(before, j + 1) > word_at(before, j)
    return ByBlock(
        plan,
        1 - output,
        output,
        row_addresses(p.h, memory),
        row_addresses(p.out, memory),
        before,
        used * p.panels.count < threads,
    )


@kernel
def count_triples(plan, output, blocks, memory):
    """How many triples stand before each output block."""
    before = take_zeros(memory, blocks + 1)
    if blocks > 0:
        for g in range(plan.groups):
            after = block_of(plan, g, output) + 1
            count = first_triple(plan, g + 1) - first_triple(plan, g)
            set_word(before, after, word_at(before, after) + count)
        for j in range(blocks):
            set_word(before, j + 1, word_at(before, j + 1) + word_at(before, j))
    return before


@kernel
def work_by_block(p, b, thread, threads, scratch):
    work = work_of(p, b, thread, threads)
    by_panel = columns_lie_together(p)
    here = next_group(p, b, START, work)
    while here.block != 0:
        following = next_group(p, b, here.number + 1, work)
        if by_panel:
            multiply_by_panel(p, b, here, following, scratch)
        else:
            multiply_by_chunk(p, b, here, following, scratch)
        here = following


@kernel
def work_of(p, b, thread, threads):
    if threads == 1:
        return Work(ALL, Share(0, 0))
    if b.too_few_panels:
        return Work(EXAMPLES, share_of(p.batch, thread, threads))
    triples = word_at(b.triples_before, p.W.shape[1])
    return Work(PANELS, share_of(triples * p.panels.count, thread, threads))


@kernel
def next_group(p, b, g, work):
    """The first group from number g on of which there is something to be worked on."""
    while g < b.plan.groups:
        rows = Share(first_triple(b.plan, g), first_triple(b.plan, g + 1))
        panels = Share(0, p.panels.count)
        if work.kind == PANELS:
            j = block_of(b.plan, g, b.output)
            before = word_at(b.triples_before, j)
            triples = word_at(b.triples_before, j + 1) - before
            panels = panels_of_share(work.share, p.panels.count, before, triples)
        elif work.kind == EXAMPLES:
            rows = Share(
                first_triple_from(b, rows, work.share.first * p.outputs),
                first_triple_from(b, rows, work.share.last * p.outputs),
            )
        if rows.first < rows.last and panels.first < panels.last:
            block = block_address(p, block_of(b.plan, g, b.input), block_of(b.plan, g, b.output))
            return Group(block, g, rows.first, rows.last, panels.first, panels.last)
        g += 1
    return NO_GROUP


@kernel
def first_triple_from(b, rows, output_row):
    """The first triple of this output row or a later one: a group's stand in their order."""
    low, high = rows.first, rows.last
    while low < high:
        middle = (low + high) // 2
        if row_of(b.plan, middle, b.output) < output_row:
            low = middle + 1
        else:
            high = middle
    return low


@kernel
def multiply_by_chunk(p, b, here, following, scratch):
    """All columns of a chunk before the next one: as a block lies whose rows lie together."""
    tiles = (here.end_panel - here.first_panel) * ceil_div(here.last - here.first, TILE_ROWS)
    first = START
    while first < p.depth:  # a range would divide
        length = min(p.depth - first, p.chunk)
        if first + length < p.depth:
            region = chunk_of(p, here, first + length)
        else:
            region = chunk_of(p, following, START)
        start_fetching(scratch.more + FETCHING, region, tiles * ceil_div(length, STRIP_DEPTH))
        for number in range(here.first_panel, here.end_panel):
            multiply(p, b, here, first, length, panel_of(p.panels, number, p.scale), scratch)
        first += length


@kernel
def chunk_of(p, group, first):
    if group.block == 0:
        return NOTHING
    start = panel_start(p.panels, group.first_panel, p.scale)
    end = panel_start(p.panels, group.end_panel, p.scale)
    return part_of(p, group.block, first, p.chunk, start, end)


@kernel
def multiply_by_panel(p, b, here, following, scratch):
    """All the depth of a panel before the next one: as a block lies whose columns lie together."""
    for number in range(here.first_panel, here.end_panel):
        panel = panel_of(p.panels, number, p.scale)
        if number + 1 < here.end_panel:
            region = whole_panel(p, here, number + 1)
        else:
            region = whole_panel(p, following, following.first_panel)
        tiles = ceil_div(here.last - here.first, TILE_ROWS)
        squares = ceil_div(panel.columns * p.depth, lanes_of(p.scale) ** 2)
        times = tiles * ceil_div(p.depth, STRIP_DEPTH) + squares
        start_fetching(scratch.more + FETCHING, region, times)
        first = START
        while first < p.depth:
            length = min(p.depth - first, p.chunk)
            multiply(p, b, here, first, length, panel, scratch)
            first += length


@kernel
def whole_panel(p, group, number):
    if group.block == 0:
        return NOTHING
    start = panel_start(p.panels, number, p.scale)
    end = panel_start(p.panels, number + 1, p.scale)
    return part_of(p, group.block, 0, p.depth, start, end)


@kernel
def multiply(p, b, group, first, length, panel, scratch):
    """Add the products of some depth of a group's rows and a panel."""
    fetching = scratch.more + FETCHING
    right = right_of(p, group.block, first, length, panel, scratch.panel, fetching)
    set_right(scratch.more, right)
    left_offset, to_offset = first * p.h.strides[2], panel.first * p.out.strides[2]
    steps = p.h.strides[2], 0
    columns, to_step = panel.columns, p.out.strides[2]
    set_task(scratch.task, steps, scratch.more, 1, length, to_step, columns, p.scale)
    for t in range(group.first, group.last, MOST_ADDRESSES):
        rows = min(group.last - t, MOST_ADDRESSES)
        for m in range(rows):
            row = word_at(b.h_rows, row_of(b.plan, t + m, b.input)) + left_offset
            prefetch(row)
            set_word(scratch.left, m, row)
            out = word_at(b.out_rows, row_of(b.plan, t + m, b.output))
            set_word(scratch.to, m, out + to_offset)
        add_products_of_rows(panel, rows, scratch.left, scratch.to, scratch.task, p.scale)
