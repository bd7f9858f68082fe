// Which path a call takes, and how many threads. kernels/thresholds.py sets the thresholds.
#pragma once

#include "check.hpp"

#include <algorithm>

namespace blocksparse {

struct Thresholds {
    i64 products_of_a_thread;  // fewer multiplications do not pay for a thread
};

// Whether all examples use the same blocks. Then every block has all examples' rows as it is, and
// sorting would only cost time. Otherwise to go block by block pays always, even where hardly any
// block is used twice: sorted, they are read in the order in which they lie.
inline bool pattern_is_shared(const Indices& indices, i64 batch) {
    const auto repeats = [batch](const Buffer<i64>& index) {
        // Each row equals the one before it.
        return batch < 2 ||
               std::equal(index.begin() + index.size() / batch, index.end(), index.begin());
    };
    return repeats(indices.input) && repeats(indices.output);
}

inline int threads_for(i64 triples, i64 products_of_a_triple, const Thresholds& thresholds,
                       int most) {
    // In floating point: the product may overflow.
    const double products =
        static_cast<double>(triples) * static_cast<double>(products_of_a_triple);
    const double worth = products / static_cast<double>(thresholds.products_of_a_thread);
    return worth < 2 ? 1 : worth < most ? static_cast<int>(worth) : most;
}

}  // namespace blocksparse
