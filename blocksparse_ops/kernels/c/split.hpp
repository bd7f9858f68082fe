// Which part of the work is a thread's. No sum is split, so threads do not change the bits.
#pragma once

#include "arrays.hpp"

#include <algorithm>

namespace blocksparse {

// The range [first, last) of `total` that one of several threads has; ranges differ by one at most.
struct Share {
    i64 first, last;

    Share(i64 total, int thread, int threads)
        : first(start(total, thread, threads)), last(start(total, thread + 1, threads)) {}

    Share(i64 first, i64 last) : first(first), last(last) {}

    bool has(i64 position) const { return first <= position && position < last; }

   private:
    static i64 start(i64 total, int thread, int threads) {
        return total / threads * thread + std::min<i64>(total % threads, thread);
    }
};

// A thread's panels. A panel weighs as much as its block has triples, and belongs to the thread in
// whose share it starts.
class Part {
   public:
    Part(i64 triples, i64 panels_of_a_block, int thread, int threads)
        : count(panels_of_a_block), share(triples * panels_of_a_block, thread, threads) {}

    // Those of a block, from the number of triples before its own and its own.
    Share panels(i64 before, i64 triples) const {
        return {first_from(share.first - before * count, triples),
                first_from(share.last - before * count, triples)};
    }

   private:
    i64 count;
    Share share;

    i64 first_from(i64 position, i64 triples) const {
        return position <= 0 ? 0 : std::min((position + triples - 1) / triples, count);
    }
};

}  // namespace blocksparse
