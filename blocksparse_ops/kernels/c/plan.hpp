// The (example, input, output) triples sorted by the block that they use.
#pragma once

#include "check.hpp"

#include <algorithm>
#include <utility>

namespace blocksparse {

// The number of a row: example * window + place in the window. Of 32 bits, since a plan's cost is
// to write its triples and to read them.
using Row = std::uint32_t;

// One of the two index arrays: the block of each row.
struct Side {
    const BlockNumbers& blocks_of_rows;
    i64 window, blocks;

    // For no_block, which is the largest number without a sign, the one past the last.
    std::uint64_t block(i64 row) const {
        return std::min<std::uint64_t>(blocks_of_rows[row], blocks);
    }
};

// Group g is a block in use, by its numbers on both sides. It multiplies the rows of triples
// start[g] to start[g + 1].
struct Plan {
    struct Block {
        i64 of[2];
    };
    struct Triple {
        Row row[2];
    };
    i64 groups = 0;
    Buffer<i64> start;
    Buffer<Block> block;
    Buffer<Triple> triple;
};

// The rank of each block in use among them, from a bitmap: a block that is not in use costs a bit.
// A row that is padded has the rank past the last.
class Ranks {
   public:
    explicit Ranks(const Side& side)
        : used(side.blocks / 64 + 1),
          before(side.blocks / 64 + 1),
          of_rows(side.blocks_of_rows.size()) {
        mark_used(side);
        for (i64 word = 0; word < used.size(); ++word) {
            before[word] = count;
            count += __builtin_popcountll(used[word]);
        }
        for (i64 row = 0; row < of_rows.size(); ++row)
            of_rows[row] = rank(side.block(row));
    }

    i64 size() const { return count; }
    i64 rows() const { return of_rows.size(); }
    Row operator[](i64 row) const { return of_rows[row]; }

   private:
    Buffer<std::uint64_t> used;  // a bit for each block
    Buffer<Row> before, of_rows;
    Row count = 0;

    // Four bitmaps in turn: an update of a word waits for the store of the one before.
    void mark_used(const Side& side) {
        constexpr i64 copies = 4;
        Buffer<std::uint64_t> bitmaps(copies * used.size());
        std::fill(bitmaps.begin(), bitmaps.end(), 0);
        for (i64 row = 0; row < of_rows.size(); ++row) {
            const std::uint64_t block = side.block(row);
            bitmaps[block / 64 * copies + row % copies] |= std::uint64_t{1} << block % 64;
        }
        for (i64 word = 0; word < used.size(); ++word) {
            used[word] = 0;
            for (i64 k = 0; k < copies; ++k) used[word] |= bitmaps[word * copies + k];
        }
        used[side.blocks / 64] &= ~(std::uint64_t{1} << side.blocks % 64);
    }

    Row rank(std::uint64_t block) const {
        const std::uint64_t below = (std::uint64_t{1} << block % 64) - 1;
        return before[block / 64] + __builtin_popcountll(used[block / 64] & below);
    }
};

// Where each rank's entries start, of a sort by rank in which a row has entries(row) of them. Those
// of rows that are padded stand last.
template <class Entries>
Buffer<i64> starts(const Ranks& ranks, const Entries& entries) {
    Buffer<i64> next(ranks.size() + 1);
    std::fill(next.begin(), next.end(), 0);
    for (i64 row = 0; row < ranks.rows(); ++row) next[ranks[row]] += entries(row);
    i64 total = 0;
    for (i64& count : next) total += std::exchange(count, total);
    return next;
}

// Rows sorted by rank, stably.
inline Buffer<Row> sort_rows(const Ranks& ranks) {
    Buffer<i64> next = starts(ranks, [](i64) { return 1; });
    Buffer<Row> order(ranks.rows());
    for (i64 row = 0; row < ranks.rows(); ++row)
        order[next[ranks[row]]++] = static_cast<Row>(row);
    return order;
}

// Where each rank of the first side starts, if its rows join all of the second side's windows that
// are not padded.
inline Buffer<i64> starts_of_triples(const Ranks& ranks, const Side& first, const Side& second,
                                     i64 batch) {
    if (!second.blocks_of_rows.is_padded)
        return starts(ranks, [&](i64) { return second.window; });
    Buffer<i64> joined(batch);
    const i64* block = second.blocks_of_rows.begin();
    for (i64& count : joined) {
        count = second.window - std::count(block, block + second.window, no_block);
        block += second.window;
    }
    return starts(ranks, [&](i64 row) { return joined[row / first.window]; });
}

// Cuts the sorted triples into runs of one block. `ends` are the ends of the first side's ranks.
inline void group(Plan& plan, const Buffer<i64>& ends, const Ranks& ranks,
                  const Ranks& minor_ranks) {
    i64 t = 0;
    i64 groups = 0;
    i64* const start = plan.start.begin();
    start[0] = 0;
    for (i64 rank = 0; rank < ranks.size(); ++rank)
        for (i64 last = -1; t < ends[rank]; ++t) {
            const i64 minor = minor_ranks[plan.triple[t].row[1]];
            // Branchless: the end of a run would be mispredicted.
            groups += minor != last;
            start[groups] = t + 1;
            last = minor;
        }
    plan.groups = groups;
}

// A radix sort of the triples, a counting sort by the second side's block and a stable one by the
// first's: O(triples), and a bit a block. A block's triples stay in the order of their examples.
// Without a branch, triples whose row of the first side is padded are written behind all others.
inline Plan make_plan(const Side& first, const Side& second, i64 batch) {
    Plan plan;
    const i64 triples = batch * first.window * second.window;
    if (triples == 0) return plan;
    const Ranks ranks(first), minor_ranks(second);
    if (ranks.size() == 0 || minor_ranks.size() == 0) return plan;
    plan.triple = Buffer<Plan::Triple>(triples);
    Buffer<i64> next = starts_of_triples(ranks, first, second, batch);
    for (Row minor : sort_rows(minor_ranks)) {
        if (minor_ranks[minor] == minor_ranks.size()) break;
        const i64 begin = minor / second.window * first.window;
        for (i64 row = begin; row < begin + first.window; ++row)
            plan.triple[next[ranks[row]]++] = {static_cast<Row>(row), minor};
    }
    // The product of the ranks may overflow.
    const i64 of_each = std::min(triples, minor_ranks.size());
    const i64 most = triples / of_each < ranks.size() ? triples : ranks.size() * of_each;
    plan.start = Buffer<i64>(most + 1);
    plan.block = Buffer<Plan::Block>(most);
    group(plan, next, ranks, minor_ranks);
    for (i64 g = 0; g < plan.groups; ++g) {
        const Row* row = plan.triple[plan.start[g]].row;
        plan.block[g] = {{first.blocks_of_rows[row[0]], second.blocks_of_rows[row[1]]}};
    }
    return plan;
}

}  // namespace blocksparse
