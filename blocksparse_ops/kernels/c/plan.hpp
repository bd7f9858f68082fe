// The (example, input, output) triples sorted by the block that they use.
#pragma once

#include "arrays.hpp"

#include <vector>

namespace blocksparse {

// Group g is the block (input_block[g], output_block[g]); it joins row input_row[t] of the input
// with row output_row[t] of the output for start[g] <= t < start[g + 1]. A row is an example and
// a position in its window, example * window + position.
struct Plan {
    std::vector<i64> start;
    std::vector<i64> input_block, output_block;
    std::vector<i64> input_row, output_row;

    i64 groups() const { return static_cast<i64>(input_block.size()); }
};

// Turns counts into the position at which each key's entries start.
inline void counts_to_starts(std::vector<i64>& counts) {
    i64 total = 0;
    for (i64& count : counts) {
        const i64 here = count;
        count = total;
        total += here;
    }
}

// Rows in the order of their block, equal blocks in the order in which they stand.
inline std::vector<i64> sort_rows(const std::vector<i64>& blocks_of_rows, i64 blocks) {
    std::vector<i64> next(static_cast<std::size_t>(blocks), 0), order(blocks_of_rows.size());
    for (i64 block : blocks_of_rows) ++next[block];
    counts_to_starts(next);
    for (std::size_t row = 0; row < blocks_of_rows.size(); ++row)
        order[next[blocks_of_rows[row]]++] = static_cast<i64>(row);
    return order;
}

// A counting sort in two passes, by input block and then, stably, by output block: the groups
// come in the order of their output block. The cost is O(triples + iBlocks + oBlocks).
inline Plan make_plan(const std::vector<i64>& inputIdx, const std::vector<i64>& outputIdx,
                      i64 batch, i64 inputs, i64 outputs, i64 iBlocks, i64 oBlocks) {
    Plan plan;
    const i64 triples = batch * inputs * outputs;
    if (triples == 0) return plan;
    plan.input_row.resize(static_cast<std::size_t>(triples));
    plan.output_row.resize(static_cast<std::size_t>(triples));

    std::vector<i64> next(static_cast<std::size_t>(oBlocks), 0);
    for (i64 block : outputIdx) next[block] += inputs;
    counts_to_starts(next);
    for (i64 input_row : sort_rows(inputIdx, iBlocks)) {
        const i64 first = input_row / inputs * outputs;
        for (i64 output_row = first; output_row < first + outputs; ++output_row) {
            const i64 t = next[outputIdx[output_row]]++;
            plan.input_row[t] = input_row;
            plan.output_row[t] = output_row;
        }
    }
    for (i64 t = 0; t < triples; ++t) {
        const i64 i = inputIdx[plan.input_row[t]], j = outputIdx[plan.output_row[t]];
        if (t == 0 || i != plan.input_block.back() || j != plan.output_block.back()) {
            plan.start.push_back(t);
            plan.input_block.push_back(i);
            plan.output_block.push_back(j);
        }
    }
    plan.start.push_back(triples);
    return plan;
}

}  // namespace blocksparse
