// Prefetching where triples are worked on as the examples stand: the blocks of rows to come.
#pragma once

#include "check.hpp"
#include "panel.hpp"

namespace blocksparse {

class Ahead {
   public:
    // For rows `row` to `end` of the output window, n * outputs + w, and blocks that lie in an
    // array of the weights' shape.
    Ahead(const Array& blocks, i64 size, const Indices& indices, i64 inputs, i64 outputs, i64 row,
          i64 end)
        : blocks(blocks), inputs(inputs), outputs(outputs), left(end - row) {
        const int row_axis = blocks.strides[3] == size ? 2 : 3, column_axis = 5 - row_axis;
        lines = blocks.shape[row_axis], step = blocks.strides[row_axis];
        bytes = blocks.shape[column_axis] * size;
        if (step == bytes) bytes *= lines, lines = 1;
        // In floating point: the product may overflow.
        const double of_all = static_cast<double>(blocks.shape[0]) *
                              static_cast<double>(blocks.shape[1]) *
                              static_cast<double>(lines * bytes);
        if (lines * bytes < least_block || of_all <= in_cache || !inputs) left = 0;
        if (!left) return;
        const i64 n = row / outputs;
        w = row - n * outputs;
        input = indices.input.begin() + n * inputs;
        output = indices.output.begin() + row;
        const i64 triples = std::clamp<i64>(distance / (lines * bytes), 4, 32);
        for (i64 ahead = 0; ahead < triples; ahead += inputs) next();
    }

    // Prefetches the blocks of one more row.
    void next() {
        if (left) prefetch();
    }

   private:
    // The processor looks some small blocks ahead by itself, and waits little for a cache: there a
    // prefetch takes longer than what it saves, up to three times as long as the products.
    static constexpr i64 least_block = 1024;
    static constexpr double in_cache = 8 * 1024 * 1024;
    static constexpr i64 distance = 16 * 1024, line = 64;
    const Array blocks;
    const i64 inputs, outputs;
    i64 left, lines, bytes, step, w;
    const i64 *input, *output;

    __attribute__((noinline)) void prefetch() {
        const char* of_output = blocks.data + *output * blocks.strides[1];
        for (i64 v = 0; v < inputs; ++v) {
            const char* row = of_output + input[v] * blocks.strides[0];
            for (i64 k = 0; k < lines; ++k, row += step)
                for (i64 at = 0; at < bytes; at += line) __builtin_prefetch(row + at);
        }
        --left, ++output;
        if (++w == outputs) w = 0, input += inputs;
    }
};

}  // namespace blocksparse
