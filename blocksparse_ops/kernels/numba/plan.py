"""The (example, input, output) triples sorted by the block that they use."""

from collections import namedtuple

from numba.core.types import NamedUniTuple, int64
from numba.extending import intrinsic

from blocksparse_ops.kernels.numba.compile import Unit, kernel
from blocksparse_ops.kernels.numba.memory import (
    row_at,
    set_row,
    set_word,
    take,
    take_zeros,
    word_at,
    words_of_rows,
)
from blocksparse_ops.kernels.numba.vector import word

# One of the two index arrays: a table of its blocks, row after row.
Side = namedtuple("Side", "blocks_of_rows rows window blocks")

# Group g is a block, named by its number on either side. It joins the rows of either side in
# triples start[g] to start[g + 1]. A row is an example and a position in its window, example *
# window + position, of 32 bits: a plan's cost is to write and to read its triples. All are tables.
Plan = namedtuple("Plan", "groups start block triple")

# The blocks in use numbered in their order, so that those that are not cost next to nothing.
Ranks = namedtuple("Ranks", "count of_rows")

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
def plan_words(first, second):
    """The memory that make_plan takes."""
    triples = first.rows * second.window
    if triples > MOST_TRIPLES:
        raise MemoryError
    groups = most_groups(triples, first.blocks, second.blocks)
    return ranking_words(first) + ranking_words(second) + second.rows + triples + 3 * groups + 1


@kernel
def ranking_words(side):
    return (COPIES + 2) * (side.blocks // 64 + 1) + 2 * side.rows


@kernel
def most_groups(triples, ranks, minor_ranks):
    """How many blocks are in use at the most. The product of the ranks may overflow."""
    of_each = max(min(triples, minor_ranks), 1)
    return triples if triples // of_each < ranks else ranks * of_each


@intrinsic
def with_bit(typing_context, bits, number):
    """The word with one more bit, by the last six bits of its number."""

    def generate(context, builder, signature, arguments):
        bits, number = arguments
        return builder.or_(bits, builder.shl(word(1), builder.and_(number, word(63))))

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
def mark_used(side, memory):
    """A bit for each block that a row uses."""
    # In several copies: setting bits of one word one after the other waits for each.
    words = side.blocks // 64 + 1
    copies = take_zeros(memory, COPIES * words)
    for row in range(side.rows):
        block = word_at(side.blocks_of_rows, row)
        at = block // 64 * COPIES + row % COPIES
        set_word(copies, at, with_bit(word_at(copies, at), block))
    used = take(memory, words)
    for at in range(words):
        bits = 0
        for copy in range(COPIES):
            bits |= word_at(copies, at * COPIES + copy)
        set_word(used, at, bits)
    return used


@kernel
def rank_blocks(side, memory):
    words = side.blocks // 64 + 1
    used = mark_used(side, memory)
    before = take(memory, words)
    count = 0
    for at in range(words):
        set_word(before, at, count)
        count += bits_of(word_at(used, at))
    of_rows = take(memory, words_of_rows(side.rows))
    for row in range(side.rows):
        block = word_at(side.blocks_of_rows, row)
        at = block // 64
        set_row(of_rows, row, word_at(before, at) + bits_below(word_at(used, at), block))
    return Ranks(count, of_rows)


@kernel
def starts(ranks, rows, entries, memory):
    """Where each rank's entries start if each of its rows has `entries` of them."""
    following = take_zeros(memory, ranks.count)
    for row in range(rows):
        rank = row_at(ranks.of_rows, row)
        set_word(following, rank, word_at(following, rank) + entries)
    total = 0
    for rank in range(ranks.count):
        count = word_at(following, rank)
        set_word(following, rank, total)
        total += count
    return following


@kernel
def next_entry(following, rank):
    """The place of the next entry of a rank, which it takes."""
    place = word_at(following, rank)
    set_word(following, rank, place + 1)
    return place


@kernel
def sort_rows(ranks, rows, memory):
    """Rows in the order of their rank, equal ranks in the order in which they stand."""
    following = starts(ranks, rows, 1, memory)
    order = take(memory, words_of_rows(rows))
    for row in range(rows):
        set_row(order, next_entry(following, row_at(ranks.of_rows, row)), row)
    return order


@kernel
def sort_triples(first, second, ranks, order, triple, memory):
    """A counting sort in two passes, by the second side's block and then, stably, by the first's.

    Returns where those of each rank of the first side end.
    """
    following = starts(ranks, first.rows, second.window, memory)
    for position in range(second.rows):
        minor = row_at(order, position)
        begin = minor // second.window * first.window
        for row in range(begin, begin + first.window):
            t = next_entry(following, row_at(ranks.of_rows, row))
            set_row(triple, 2 * t, row)
            set_row(triple, 2 * t + 1, minor)
    return following


@kernel
def group(start, triple, ends, count, minor_ranks):
    """Cut the sorted triples into runs of one block, and return their number.

    `ends` has where the triples of each of `count` ranks of the first side end.
    """
    t = 0
    groups = 0
    set_word(start, 0, 0)
    for rank in range(count):
        end = word_at(ends, rank)
        last = -1
        while t < end:
            minor = row_at(minor_ranks.of_rows, row_at(triple, 2 * t + 1))
            # No branch: where a run ends cannot be foretold.
            groups += minor != last
            set_word(start, groups, t + 1)
            last = minor
            t += 1
    return groups


def make_plan(first, second, memory):
    """A plan of O(triples) cost, and a bit for each block."""
    triples = first.rows * second.window
    ranks, minor_ranks = rank_blocks(first, memory), rank_blocks(second, memory)
    order = sort_rows(minor_ranks, second.rows, memory)
    triple = take(memory, triples)
    ends = sort_triples(first, second, ranks, order, triple, memory)
    most = most_groups(triples, ranks.count, minor_ranks.count)
    start = take(memory, most + 1)
    groups = group(start, triple, ends, ranks.count, minor_ranks)
    block = take(memory, 2 * groups)
    for g in range(groups):
        t = word_at(start, g)
        set_word(block, 2 * g, word_at(first.blocks_of_rows, row_at(triple, 2 * t)))
        set_word(block, 2 * g + 1, word_at(second.blocks_of_rows, row_at(triple, 2 * t + 1)))
    return Plan(groups, start, block, triple)


PLAN, SIDE = NamedUniTuple(int64, 4, Plan), NamedUniTuple(int64, 4, Side)
MAKE_PLAN = Unit(make_plan, lambda: PLAN(SIDE, SIDE, int64))
call_make_plan = MAKE_PLAN.call
