"""The (example, input, output) triples sorted by the block that they use."""

from collections import namedtuple

import numpy as np
from numba.core.types import Array, NamedTuple, NamedUniTuple, int64, uint32, uint64
from numba.extending import intrinsic

from blocksparse_ops.kernels.numba.arrays import address_of, load
from blocksparse_ops.kernels.numba.compile import Unit, kernel

# One of the two index arrays: its blocks, row after row.
Side = namedtuple("Side", "blocks_of_rows window blocks")

# Group g is a block, named by its number on either side, block[g]. It joins the rows of either side
# in triples start[g] to start[g + 1]. A row is an example and a position in its window, example *
# window + position, of 32 bits: a plan's cost is to write and to read its triples.
Plan = namedtuple("Plan", "groups start block triple")

# The same by address: to count references to arrays costs as much as the products of a row.
PlanAt = namedtuple("PlanAt", "groups start block triple")

PLAN = NamedTuple((int64, Array(int64, 1, "C"), Array(int64, 2, "C"), Array(uint32, 2, "C")), Plan)
PLAN_AT = NamedUniTuple(int64, 4, PlanAt)
SIDE = NamedTuple((Array(int64, 1, "C"), int64, int64), Side)

# The blocks in use numbered in their order, so that those that are not cost next to nothing.
Ranks = namedtuple("Ranks", "count of_rows")


@intrinsic
def count_bits(typing_context, bits):
    """How many bits are set."""

    def generate(context, builder, signature, arguments):
        return builder.ctpop(arguments[0])

    return uint64(uint64), generate


@kernel
def mark_used(side):
    """A bit for each block that a row uses."""
    # In four copies: setting bits of one word one after the other waits for each.
    words = side.blocks // 64 + 1
    copies = np.zeros((words, 4), np.uint64)
    for row in range(side.blocks_of_rows.size):
        block = side.blocks_of_rows[row]
        copies[block // 64, row % 4] |= np.uint64(1) << np.uint64(block % 64)
    used = np.empty(words, np.uint64)
    for word in range(words):
        used[word] = copies[word, 0] | copies[word, 1] | copies[word, 2] | copies[word, 3]
    return used


@kernel
def rank_blocks(side):
    used = mark_used(side)
    before = np.empty(used.size, np.uint32)
    count = np.uint64(0)
    for word in range(used.size):
        before[word] = count
        count += count_bits(used[word])
    of_rows = np.empty(side.blocks_of_rows.size, np.uint32)
    for row in range(of_rows.size):
        block = side.blocks_of_rows[row]
        below = (np.uint64(1) << np.uint64(block % 64)) - np.uint64(1)
        of_rows[row] = before[block // 64] + count_bits(used[block // 64] & below)
    return Ranks(np.int64(count), of_rows)


@kernel
def starts(ranks, entries):
    """Where each rank's entries start if each of its rows has `entries` of them."""
    following = np.zeros(ranks.count, np.int64)
    for rank in ranks.of_rows:
        following[rank] += entries
    total = 0
    for rank in range(ranks.count):
        count = following[rank]
        following[rank] = total
        total += count
    return following


@kernel
def sort_rows(ranks):
    """Rows in the order of their rank, equal ranks in the order in which they stand."""
    following = starts(ranks, 1)
    order = np.empty(ranks.of_rows.size, np.uint32)
    for row in range(order.size):
        rank = ranks.of_rows[row]
        order[following[rank]] = row
        following[rank] += 1
    return order


@kernel
def group(start, triple, ends, minor_ranks):
    """Cut the sorted triples into runs of one block, and return their number.

    `ends` has where the triples of each rank of the first side end.
    """
    t = 0
    groups = 0
    start[0] = 0
    for end in ends:
        last = -1
        while t < end:
            rank = np.int64(minor_ranks.of_rows[triple[t, 1]])
            # No branch: where a run ends cannot be foretold.
            groups += rank != last
            start[groups] = t + 1
            last = rank
            t += 1
    return groups


@kernel
def sort_triples(first, second, ranks, minor_ranks):
    """A counting sort in two passes, by the second side's block and then, stably, by the first's.

    Returns the triples, and where those of each rank of the first side end.
    """
    triple = np.empty((first.blocks_of_rows.size * second.window, 2), np.uint32)
    following = starts(ranks, second.window)
    for minor in sort_rows(minor_ranks):
        begin = np.int64(minor) // second.window * first.window
        for row in range(begin, begin + first.window):
            rank = ranks.of_rows[row]
            triple[following[rank], 0] = row
            triple[following[rank], 1] = minor
            following[rank] += 1
    return triple, following


def make_plan(first, second):
    """A plan of O(triples) cost, and a bit for each block."""
    triples = first.blocks_of_rows.size * second.window
    ranks, minor_ranks = rank_blocks(first), rank_blocks(second)
    triple, ends = sort_triples(first, second, ranks, minor_ranks)
    # The product of the ranks may overflow.
    of_each = max(min(triples, minor_ranks.count), 1)
    most = triples if triples // of_each < ranks.count else ranks.count * of_each
    start = np.empty(most + 1, np.int64)
    groups = group(start, triple, ends, minor_ranks)
    block = np.empty((most, 2), np.int64)
    for g in range(groups):
        block[g, 0] = first.blocks_of_rows[triple[start[g], 0]]
        block[g, 1] = second.blocks_of_rows[triple[start[g], 1]]
    return Plan(groups, start, block, triple)


MAKE_PLAN = Unit(make_plan, lambda: PLAN(SIDE, SIDE))
call_make_plan = MAKE_PLAN.call


@kernel
def locate_plan(plan):
    return PlanAt(
        plan.groups, address_of(plan.start), address_of(plan.block), address_of(plan.triple)
    )


@kernel
def start_of(plan, g):
    """The first triple of a group; for the number of groups, the number of triples."""
    return load(plan.start + 8 * g, np.int64(0))


@kernel
def block_of(plan, g, side):
    """The block of a group, by its number on a side."""
    return load(plan.block + 16 * g + 8 * side, np.int64(0))


@kernel
def row_of(plan, t, side):
    """The row of a side that a triple joins."""
    return np.int64(load(plan.triple + 8 * t + 4 * side, np.uint32(0)))
