// What both paths of gemv work on.
#pragma once

#include "check.hpp"
#include "pack.hpp"
#include "tile.hpp"

#include <cstdlib>

namespace blocksparse {

template <class T>
struct Product {
    static constexpr i64 size = sizeof(T);

    Array W, h, out;
    i64 batch, inputs, outputs, depth, columns;
    Indices indices;

    Fault prepare(const Array* args, int count, const SizePair* equal_sizes, int pair_count) {
        W = args[1];
        h = args[2];
        batch = h.shape[0], inputs = h.shape[1], outputs = args[0].shape[1];
        depth = W.shape[2], columns = W.shape[3];
        return check(args, count, equal_sizes, pair_count, batch, inputs, outputs, W.shape[0],
                     W.shape[1], indices);
    }

    const char* block(i64 i, i64 j) const {
        return W.data + i * W.strides[0] + j * W.strides[1];
    }

    bool is_column_major() const {
        return std::abs(W.strides[2]) < std::abs(W.strides[3]);
    }

    // Part of a block to prefetch: nothing without a block, or if neither axis is contiguous.
    Prefetch prefetch(const char* block, i64 row, i64 rows, i64 column, i64 end_column) const {
        if (!block) return {nullptr, 0, 0, 0};
        const char* corner = block + row * W.strides[2] + column * W.strides[3];
        rows = std::min(rows, depth - row);
        if (W.strides[3] == size)
            return {corner, rows, (end_column - column) * size, W.strides[2]};
        if (W.strides[2] == size) return {corner, end_column - column, rows * size, W.strides[3]};
        return {nullptr, 0, 0, 0};
    }

    // Rows k0 to k0 + length of a block's panel.
    template <class Panel>
    Right right(const char* block, i64 k0, i64 length, const Panel& panel, T* scratch,
                Prefetch& prefetch) const {
        return pack_if_strided(block + k0 * W.strides[2], W.strides[2], W.strides[3], length,
                               panel, scratch, prefetch);
    }
};

}  // namespace blocksparse
