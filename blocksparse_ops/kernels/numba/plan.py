"""The (example, input, output) triples sorted by the block that they use."""

import numpy as np
from numba.core.types import int64, void
from numba.extending import intrinsic

from blocksparse_ops.kernels.numba.check import NO_BLOCK
from blocksparse_ops.kernels.numba.compile import Unit, kernel
from blocksparse_ops.kernels.numba.memory import (
    fill_zeros,
    row_at,
    set_row,
    set_word,
    take,
    take_rows,
    word_at,
)
from blocksparse_ops.kernels.numba.records import Record
from blocksparse_ops.kernels.numba.vector import word

# One of the two index arrays: the block of each row. Row n * window + v is example n's, of 32 bits,
# since a plan's cost is to write its triples and to read them. Then, for the plan: bitmaps of the
# blocks in use and how many of them stand before each word; the rank of each row's block among
# them, so that a block that is not in use costs a bit; and where the next entry of each rank goes.
# A row that is padded has the rank past the last. `joined`, of a side that is joined with one that
# may be padded, has for each example the rows of that which are not, and else is 0.
SIDE = Record(
    "Side",
    "blocks_of_rows rows window blocks is_padded bitmaps used before ranks rank_of_rows following "
    "joined",
)

# Group g is a block in use, by its numbers on both sides. It multiplies the rows of triples
# start[g] to start[g + 1]. `order` has the second side's rows by their rank.
PLAN = Record("Plan", "groups order triple start block", first=SIDE, second=SIDE)

plan_at = PLAN.at

# Sides, and a number of entries. Not literals, for which Numba would compile once more.
FIRST, SECOND, ONE = np.int64(0), np.int64(1), np.int64(1)

COPIES = 4

# No machine has the memory for more.
MOST_TRIPLES = 1 << 56


@kernel
def first_triple(plan, g):
    """Of a group; for the number of groups, the number of triples."""
    return word_at(plan.start, g)


@kernel
def block_of(plan, g, side):
    """The block of a group, by its number on a side."""
    return word_at(plan.block, 2 * g + side)


@kernel
def row_of(plan, t, side):
    """The row of a side that a triple joins."""
    return row_at(plan.triple, 2 * t + side)


@kernel
def set_side(side, rows, window, blocks, is_padded):
    side.rows, side.window, side.blocks, side.is_padded = rows, window, blocks, is_padded


@kernel
def take_plan(plan, memory):
    """All tables that make_plan fills."""
    first, second = plan.first, plan.second
    triples = first.rows * second.window
    if triples > MOST_TRIPLES:
        raise MemoryError
    take_side(first, memory)
    take_side(second, memory)
    first.joined = take(memory, first.rows) if second.is_padded else 0
    second.joined = 0
    plan.order = take_rows(memory, second.rows)
    plan.triple = take(memory, triples)
    groups = most_groups(triples, first.blocks, second.blocks)
    plan.start = take(memory, groups + 1)
    plan.block = take(memory, 2 * groups)


@kernel
def take_side(side, memory):
    words = side.blocks // 64 + 1
    side.bitmaps = take(memory, COPIES * words)
    side.used, side.before = take(memory, words), take(memory, words)
    side.rank_of_rows = take_rows(memory, side.rows)
    side.following = take(memory, min(side.rows, side.blocks) + 1)


@kernel
def most_groups(triples, blocks, other_blocks):
    """How many blocks are in use at the most. The product of the blocks may overflow."""
    of_each = max(min(triples, other_blocks), 1)
    return triples if triples // of_each < blocks else blocks * of_each


@intrinsic
def with_bit(typing_context, bits, number):
    """The word with one more bit, by the last six bits of its number."""

    def generate(context, builder, signature, arguments):
        bits, number = arguments
        return builder.or_(bits, builder.shl(word(1), builder.and_(number, word(63))))

    return int64(int64, int64), generate


@intrinsic
def without_bit(typing_context, bits, number):
    """The word without one bit, by the last six bits of its number."""

    def generate(context, builder, signature, arguments):
        bits, number = arguments
        bit = builder.shl(word(1), builder.and_(number, word(63)))
        return builder.and_(bits, builder.not_(bit))

    return int64(int64, int64), generate


@intrinsic
def bits_below(typing_context, bits, number):
    """How many bits below one are set, by the last six bits of its number."""

    def generate(context, builder, signature, arguments):
        bits, number = arguments
        bit = builder.shl(word(1), builder.and_(number, word(63)))
        return builder.ctpop(builder.and_(bits, builder.sub(bit, word(1))))

    return int64(int64, int64), generate


@intrinsic
def bits_of(typing_context, bits):
    """How many bits are set."""

    def generate(context, builder, signature, arguments):
        return builder.ctpop(arguments[0])

    return int64(int64), generate


@kernel
def block_of_row(side, row):
    """For NO_BLOCK, which is the largest number without a sign, the number past the last."""
    return np.int64(min(np.uint64(word_at(side.blocks_of_rows, row)), np.uint64(side.blocks)))


@kernel
def mark_used(side):
    """Set a bit for each block that a row uses."""
    # Four bitmaps in turn: an update of a word waits for the store of the one before.
    words = side.blocks // 64 + 1
    fill_zeros(side.bitmaps, COPIES * words)
    for row in range(side.rows):
        block = block_of_row(side, row)
        at = block // 64 * COPIES + row % COPIES
        set_word(side.bitmaps, at, with_bit(word_at(side.bitmaps, at), block))
    for at in range(words):
        bits = 0
        for copy in range(COPIES):
            bits |= word_at(side.bitmaps, at * COPIES + copy)
        set_word(side.used, at, bits)
    past = side.blocks // 64
    set_word(side.used, past, without_bit(word_at(side.used, past), side.blocks))


@kernel
def rank_blocks(side):
    mark_used(side)
    count = 0
    for at in range(side.blocks // 64 + 1):
        set_word(side.before, at, count)
        count += bits_of(word_at(side.used, at))
    side.ranks = count
    for row in range(side.rows):
        block = block_of_row(side, row)
        at = block // 64
        rank = word_at(side.before, at) + bits_below(word_at(side.used, at), block)
        set_row(side.rank_of_rows, row, rank)


@kernel
def start_ranks(side, entries):
    """Where each rank's entries start if each of its rows has `entries` of them.

    Or, where there is a table, as many as its example. Those of rows that are padded stand last.
    """
    fill_zeros(side.following, side.ranks + 1)
    for row in range(side.rows):
        if side.joined != 0:
            entries = word_at(side.joined, row // side.window)
        rank = row_at(side.rank_of_rows, row)
        set_word(side.following, rank, word_at(side.following, rank) + entries)
    total = 0
    for rank in range(side.ranks + 1):
        count = word_at(side.following, rank)
        set_word(side.following, rank, total)
        total += count


@kernel
def next_entry(side, row):
    """Where the next entry of a row's rank goes; the one after it goes behind it."""
    rank = row_at(side.rank_of_rows, row)
    entry = word_at(side.following, rank)
    set_word(side.following, rank, entry + 1)
    return entry


@kernel
def count_joined(first, second):
    """Count for each example the rows of the second side's window that are not padded."""
    for n in range(first.rows // max(first.window, 1)):
        count = 0
        for row in range(n * second.window, (n + 1) * second.window):
            count += word_at(second.blocks_of_rows, row) != NO_BLOCK
        set_word(first.joined, n, count)


@kernel
def sort_triples(plan):
    """A counting sort in two passes, by the second side's block, then by the first's.

    Both are stable: a row's triples stay in the order of its window, however often and wherever a
    block is named. `following` of the first side is then where the triples of each rank end.
    Without a branch, triples whose row of the first side is padded are written behind all others.
    """
    first, second = plan.first, plan.second
    start_ranks(second, ONE)
    for row in range(second.rows):
        set_row(plan.order, next_entry(second, row), row)
    if first.joined != 0:
        count_joined(first, second)
    start_ranks(first, second.window)
    for position in range(second.rows):
        minor = row_at(plan.order, position)
        if row_at(second.rank_of_rows, minor) == second.ranks:
            break
        begin = minor // second.window * first.window
        for row in range(begin, begin + first.window):
            t = next_entry(first, row)
            set_row(plan.triple, 2 * t, row)
            set_row(plan.triple, 2 * t + 1, minor)


@kernel
def group_triples(plan):
    """Cut the sorted triples into runs of one block."""
    start, triple, ranks = plan.start, plan.triple, plan.second.rank_of_rows
    t = 0
    groups = 0
    set_word(start, 0, 0)
    for rank in range(plan.first.ranks):
        end = word_at(plan.first.following, rank)
        last = -1
        while t < end:
            minor = row_at(ranks, row_at(triple, 2 * t + 1))
            # Without a branch, which would be mispredicted: where runs end follows no pattern.
            groups += minor != last
            set_word(start, groups, t + 1)
            last = minor
            t += 1
    plan.groups = groups


def make_plan(address):
    """Fill a plan of which the sides are known: at O(triples) cost, and a bit for each block."""
    plan = plan_at(address, 0, address)
    rank_blocks(plan.first)
    rank_blocks(plan.second)
    sort_triples(plan)
    group_triples(plan)
    for g in range(plan.groups):
        t = first_triple(plan, g)
        first, second = row_of(plan, t, FIRST), row_of(plan, t, SECOND)
        set_word(plan.block, 2 * g, word_at(plan.first.blocks_of_rows, first))
        set_word(plan.block, 2 * g + 1, word_at(plan.second.blocks_of_rows, second))


MAKE_PLAN = Unit(make_plan, lambda _: void(int64))
ready_make_plan, call_make_plan = MAKE_PLAN.ready, MAKE_PLAN.call
