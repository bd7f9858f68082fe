// Which of the sorted paths a call takes, and how many threads. kernels/thresholds.py sets the
// thresholds, and source.py chooses between them and the direct path.
#pragma once

#include "check.hpp"

#include <algorithm>

namespace blocksparse {

struct Thresholds {
    i64 products_of_a_thread;  // fewer multiplications do not pay for a thread
};

// Whether all examples use the same blocks. Every block in use then has all examples as its rows,
// and a plan would only cost time: a third of the call where each example uses every block.
//
// Otherwise going block by block, in the order of memory, pays for all but small blocks: against
// one output row after the other it took 0.99 of the time at 1.1 triples a block in use, 0.65 at
// 1.6, 0.53 at 2.4.
inline bool pattern_is_shared(const Indices& indices, i64 batch) {
    const auto repeats = [batch](const BlockNumbers& index) {
        // Each row equals the one before it.
        return batch < 2 ||
               std::equal(index.begin() + index.size() / batch, index.end(), index.begin());
    };
    return !indices.are_padded() && repeats(indices.input) && repeats(indices.output);
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
