// Which part of the work is a thread's. A sum is never cut, so the parts do not change its bits.
#pragma once

#include "arrays.hpp"

#include <algorithm>

namespace blocksparse {

// The part [first, last) of `total` that one of several threads has. Parts differ by one at most.
struct Share {
    i64 first, last;

    Share(i64 total, int thread, int threads)
        : first(start(total, thread, threads)), last(start(total, thread + 1, threads)) {}

    bool has(i64 position) const { return first <= position && position < last; }

   private:
    static i64 start(i64 total, int thread, int threads) {
        return total / threads * thread + std::min<i64>(total % threads, thread);
    }
};

}  // namespace blocksparse
