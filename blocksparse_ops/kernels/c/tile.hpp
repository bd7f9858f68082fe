// The micro-kernel: a register tile of a few rows by a few vectors, summed over a depth.
#pragma once

#include "panel.hpp"

namespace blocksparse {

// The right operand, row by row: the elements of a row are contiguous.
struct Right {
    const char* start;
    i64 step;

    const char* operator()(i64 k) const { return start + k * step; }
};

// Prefetches rows of memory into L2, a few cache lines at a time between the products.
//
// A contiguous region is prefetched in quarters at once: the hardware prefetcher follows each as a
// stream and runs ahead of it. Of rows with gaps, four lines are prefetched at once, a tile's row.
class Prefetch {
   public:
    Prefetch() = default;
    Prefetch(const char* start, i64 rows, i64 bytes, i64 step) : row(start), step(step) {
        const bool contiguous = step == bytes || rows == 1;
        this->rows = contiguous ? std::min<i64>(rows, 1) : rows;
        this->bytes = contiguous ? ceil_div(rows * bytes, streams) : bytes;
        stream_step = contiguous ? this->bytes : line;
        round_step = contiguous ? line : streams * line;
    }

    // Spreads the region over so many calls of issue().
    void spread(i64 calls) {
        rounds = ceil_div(rows * ceil_div(bytes, round_step), std::max<i64>(calls, 1));
    }

    void issue() {
        for (i64 round = rounds; round > 0 && rows > 0; --round) {
#pragma GCC unroll 4
            for (int stream = 0; stream < streams; ++stream)
                __builtin_prefetch(row + at + stream * stream_step, 0, 2);
            at += round_step;
            if (at >= bytes) at = 0, row += step, --rows;
        }
    }

   private:
    static constexpr i64 line = 64;
    static constexpr int streams = 4;
    const char* row;
    i64 rows, bytes, step, stream_step, round_step, at = 0, rounds = 0;
};

// sum[m][.] = sum over k < depth of left(m, k) * right(k)[.]
//
// Unrolled over rows and vectors, or the accumulators would not stay in registers.
template <class Panel, int rows>
class Tile {
   public:
    using T = typename Panel::T;
    using V = Vector<T, Panel::lanes>;

    explicit Tile(const Panel& panel) : panel(panel) {
#pragma GCC unroll 24
        for (V& vector : sum) vector = V{};
    }

    template <class Left, class Right>
    __attribute__((always_inline)) void accumulate(i64 depth, const Left& left, const Right& right,
                                                   Prefetch& prefetch) {
        for (i64 strip = 0; strip < depth; strip += strip_depth) {
            prefetch.issue();
            const i64 end = std::min(strip + strip_depth, depth);
            i64 k = strip;
#pragma GCC unroll 4
            for (; k + chains <= end; k += chains)
#pragma GCC unroll 4
                for (int chain = 0; chain < chains; ++chain) step(chain, k + chain, left, right);
#pragma GCC unroll 4
            for (int chain = 0; chain + 1 < chains; ++chain)
                if (k + chain < end) step(chain, k + chain, left, right);
        }
    }

    // to(m)[q] += scale * sum[m][q] for q < columns, `stride` bytes apart.
    template <class To>
    __attribute__((always_inline)) void add(const To& to, i64 stride, T scale) {
        join_chains();
        if (stride == static_cast<i64>(sizeof(T))) {
#pragma GCC unroll 8
            for (int m = 0; m < rows; ++m) add_row(to(m), m, scale);
        } else {
            T total[rows][Panel::width];
#pragma GCC unroll 8
            for (int m = 0; m < rows; ++m) spill_row(total[m], m);
            for (int m = 0; m < rows; ++m) {
                char* out = to(m);
                for (i64 q = 0; q < panel.columns; ++q)
                    *reinterpret_cast<T*>(out + q * stride) += scale * total[m][q];
            }
        }
    }

   private:
    static constexpr int vectors = Panel::vectors;
    // Independent accumulators of an element, by k modulo `chains`, for narrow panels to hide the
    // latency of the FMA. A power of two, for join_chains. The same for every number of rows, so
    // that the order of a row's sum, and with it its bits, does not depend on the rows beside it.
    static constexpr int chains = std::max(tile_vectors / vectors, 1);

    const Panel panel;
    V sum[chains * rows * vectors];

    V& at(int chain, int m, int vec) { return sum[(chain * rows + m) * vectors + vec]; }

    template <class Left, class Right>
    __attribute__((always_inline)) void step(int chain, i64 k, const Left& left,
                                             const Right& right) {
        V loaded[vectors];
        const char* row = right(k);
#pragma GCC unroll 4
        for (int vec = 0; vec < vectors; ++vec)
            loaded[vec] = load_vector<V>(row + panel.offset(vec));
#pragma GCC unroll 8
        for (int m = 0; m < rows; ++m) {
            const T factor = left(m, k);
#pragma GCC unroll 4
            for (int vec = 0; vec < vectors; ++vec) at(chain, m, vec) += factor * loaded[vec];
        }
    }

    __attribute__((always_inline)) void join_chains() {
#pragma GCC unroll 4
        for (int width = chains / 2; width > 0; width /= 2)
#pragma GCC unroll 24
            for (int k = 0; k < width * rows * vectors; ++k)
                sum[k] += sum[width * rows * vectors + k];
    }

    // All loads come before all stores: the last vector may overlap the one before it.
    __attribute__((always_inline)) void add_row(char* out, int m, T scale) {
        V total[vectors];
#pragma GCC unroll 4
        for (int vec = 0; vec < vectors; ++vec)
            total[vec] = load_vector<V>(out + panel.offset(vec)) + scale * at(0, m, vec);
#pragma GCC unroll 4
        for (int vec = 0; vec < vectors; ++vec) store_vector(out + panel.offset(vec), total[vec]);
    }

    __attribute__((always_inline)) void spill_row(T* row, int m) {
#pragma GCC unroll 4
        for (int vec = 0; vec < vectors; ++vec)
            store_vector(reinterpret_cast<char*>(row) + panel.offset(vec), at(0, m, vec));
    }
};

// Where some rows of the left operand and of the output start: looked up ahead of the products, so
// that their cache misses overlap.
struct Addresses {
    static constexpr i64 most = 48;
    const char* left[most];
    char* to[most];
};

// A panel of a block, and what to prefetch meanwhile.
struct Factor {
    Right right;
    Prefetch prefetch;
};

// to[m][.] += sum over blocks and k < depth of left[m][block, k] * right[block](k)[.]
//
// Not inlined: each instantiation of Tile takes long to compile.
template <int rows, class Panel>
__attribute__((noinline)) void add_products(const char* const* left, i64 left_step,
                                            i64 left_block_step, Factor* factors, i64 blocks,
                                            i64 depth, char* const* to, i64 to_step,
                                            const Panel& panel) {
    using T = typename Panel::T;
    Tile<Panel, rows> tile(panel);
    const char* row[rows];
    for (int m = 0; m < rows; ++m) {
        row[m] = left[m];
        panel.prefetch(to[m]);
    }
    for (i64 block = 0; block < blocks; ++block) {
        tile.accumulate(
            depth, [&](int m, i64 k) { return load<T>(row[m] + k * left_step); },
            factors[block].right, factors[block].prefetch);
        for (int m = 0; m < rows; ++m) row[m] += left_block_step;
    }
    tile.add([&](int m) { return to[m]; }, to_step, T(1));
}

}  // namespace blocksparse
