// Prefetching where triples are worked on as the examples stand: the blocks of rows to come.
#pragma once

#include "check.hpp"
#include "panel.hpp"

namespace blocksparse {

class Ahead {
   public:
    // For rows n * outputs + w up to `end`, and blocks that lie in an array of the weights' shape.
    Ahead(const Array& blocks, i64 size, const Indices& indices, i64 inputs, i64 outputs, i64 end)
        : blocks(blocks), indices(indices), inputs(inputs), outputs(outputs), end(end) {
        const int row_axis = blocks.strides[3] == size ? 2 : 3, column_axis = 5 - row_axis;
        lines = blocks.shape[row_axis], step = blocks.strides[row_axis];
        bytes = blocks.shape[column_axis] * size;
        if (step == bytes) bytes *= lines, lines = 1;  // a cache line may hold several
        // In floating point: the product may overflow.
        const double of_all = static_cast<double>(blocks.shape[0]) *
                              static_cast<double>(blocks.shape[1]) *
                              static_cast<double>(lines * bytes);
        if (lines * bytes < least_block || of_all <= in_cache || !inputs) return;
        rows = ceil_div(std::clamp<i64>(distance / (lines * bytes), 4, 32), inputs);
    }

    // Prefetches the blocks of a row to come.
    void prefetch_from(i64 row) const {
        if (rows && row + rows < end) prefetch(row + rows);
    }

   private:
    // The processor looks some small blocks ahead by itself, and waits little for a cache: there a
    // prefetch takes longer than what it saves, up to three times as long as the products.
    static constexpr i64 least_block = 1024;
    static constexpr double in_cache = 8 * 1024 * 1024;
    static constexpr i64 distance = 16 * 1024, line = 64;
    const Array blocks;
    const Indices& indices;
    const i64 inputs, outputs, end;
    i64 lines, bytes, step, rows = 0;

    __attribute__((noinline)) void prefetch(i64 row) const {
        const i64* input = indices.input.begin() + row / outputs * inputs;
        const char* of_output =
            blocks.data + std::max<i64>(indices.output[row], 0) * blocks.strides[1];
        for (i64 v = 0; v < inputs; ++v) {
            // Of what is padded another block.
            const char* at = of_output + std::max<i64>(input[v], 0) * blocks.strides[0];
            for (i64 k = 0; k < lines; ++k, at += step)
                for (i64 byte = 0; byte < bytes; byte += line) __builtin_prefetch(at + byte);
        }
    }
};

}  // namespace blocksparse
