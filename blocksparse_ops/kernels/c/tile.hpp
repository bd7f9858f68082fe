// The register tile: a few rows by a few vectors, summed over a depth, added to the output.
#pragma once

#include "panel.hpp"

namespace blocksparse {

// Where row k of a panel starts, its elements side by side.
struct Right {
    const char* start;
    i64 step;

    const char* operator()(i64 k) const { return start + k * step; }
};

// Rows of memory that are needed next, asked for a few lines at a time beside the products.
//
// Rows without a gap are one long row, of which all quarters are asked for side by side: the
// machine's own fetching follows each place that is read on and on, and so brings more.
class Prefetch {
   public:
    Prefetch() = default;
    Prefetch(const char* start, i64 rows, i64 bytes, i64 step) : row(start), step(step) {
        const bool is_long = step == bytes || rows == 1;
        this->rows = is_long ? std::min<i64>(rows, 1) : rows;
        this->bytes = is_long ? ceil_div(rows * bytes, places) : bytes;
        apart = is_long ? this->bytes : line;
        advance = is_long ? line : places * line;
    }

    // Asks for all in `times` calls of some().
    void spread(i64 times) {
        looks = ceil_div(rows * ceil_div(bytes, advance), std::max<i64>(times, 1));
    }

    void some() {
        for (i64 n = looks; n > 0 && rows > 0; --n) {
#pragma GCC unroll 4
            for (int place = 0; place < places; ++place)
                __builtin_prefetch(row + at + place * apart, 0, 2);
            at += advance;
            if (at >= bytes) at = 0, row += step, --rows;
        }
    }

   private:
    static constexpr i64 line = 64;
    static constexpr int places = 4;  // a tile's row, if rows have gaps
    const char* row;
    i64 rows, bytes, step, apart, advance, at = 0, looks = 0;
};

// sum[m][.] = sum over k < depth of left(m, k) * right(k)[.]
//
// The loops over rows and vectors are unrolled, or the sums would not stay in registers.
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
            prefetch.some();
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

    // to(m)[n] += scale * sum[m][n] for n < columns, n counted in strides.
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
                for (i64 n = 0; n < panel.columns; ++n)
                    *reinterpret_cast<T*>(out + n * stride) += scale * total[m][n];
            }
        }
    }

   private:
    static constexpr int vectors = Panel::vectors;
    // As many sums beside each other as keep the multipliers busy with one row of one vector:
    // the same for every number of rows, so that a row's sum is taken in the same order in each.
    static constexpr int chains = std::max(tile_vectors / vectors, 1);

    const Panel panel;
    V sum[chains * rows * vectors];

    V& at(int chain, int m, int v) { return sum[(chain * rows + m) * vectors + v]; }

    template <class Left, class Right>
    __attribute__((always_inline)) void step(int chain, i64 k, const Left& left,
                                             const Right& right) {
        V loaded[vectors];
        const char* row = right(k);
#pragma GCC unroll 4
        for (int v = 0; v < vectors; ++v) loaded[v] = load_vector<V>(row + panel.offset(v));
#pragma GCC unroll 8
        for (int m = 0; m < rows; ++m) {
            const T factor = left(m, k);
#pragma GCC unroll 4
            for (int v = 0; v < vectors; ++v) at(chain, m, v) += factor * loaded[v];
        }
    }

    __attribute__((always_inline)) void join_chains() {
#pragma GCC unroll 4
        for (int width = chains / 2; width > 0; width /= 2)
#pragma GCC unroll 24
            for (int k = 0; k < width * rows * vectors; ++k)
                sum[k] += sum[width * rows * vectors + k];
    }

    // All is read before any is written: the last vector may overlap the one before it.
    __attribute__((always_inline)) void add_row(char* out, int m, T scale) {
        V total[vectors];
#pragma GCC unroll 4
        for (int v = 0; v < vectors; ++v)
            total[v] = load_vector<V>(out + panel.offset(v)) + scale * at(0, m, v);
#pragma GCC unroll 4
        for (int v = 0; v < vectors; ++v) store_vector(out + panel.offset(v), total[v]);
    }

    __attribute__((always_inline)) void spill_row(T* row, int m) {
#pragma GCC unroll 4
        for (int v = 0; v < vectors; ++v)
            store_vector(reinterpret_cast<char*>(row) + panel.offset(v), at(0, m, v));
    }
};

// Some rows: where those of the left operand start, and where their products are added. They are
// looked up together, ahead of the products, because each look waits for memory.
struct Addresses {
    static constexpr i64 most = 48;
    const char* left[most];
    char* to[most];
};

// A panel of a block, and what to fetch while it is worked on.
struct Factor {
    Right right;
    Prefetch prefetch;
};

// to[m][.] += sum over blocks and k < depth of left[m][block, k] * right[block](k)[.]
//
// A function of its own: every kind of tile takes time to compile.
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
        panel.fetch(to[m]);
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
