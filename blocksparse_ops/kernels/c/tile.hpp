// The register tile: a few rows by a few vectors, summed over a depth, added to the output.
#pragma once

#include "arrays.hpp"

#include <algorithm>
#include <cstring>
#include <type_traits>

namespace blocksparse {

#if defined(__AVX512F__)
constexpr int vector_bytes = 64;
#elif defined(__AVX__)
constexpr int vector_bytes = 32;
#else
constexpr int vector_bytes = 16;
#endif

inline i64 ceil_div(i64 a, i64 b) { return (a + b - 1) / b; }

template <class T>
constexpr int full_lanes = vector_bytes / static_cast<int>(sizeof(T));

template <class T, int lanes>
struct VectorOf {
    typedef T type __attribute__((vector_size(lanes * sizeof(T))));
};

template <class T, int lanes>
using Vector = typename VectorOf<T, lanes>::type;

template <class T>
T load(const char* address) {
    return *reinterpret_cast<const T*>(address);
}

template <class V>
V load_vector(const char* address) {
    V vector;
    std::memcpy(&vector, address, sizeof vector);
    return vector;
}

template <class V>
void store_vector(char* address, const V& vector) {
    std::memcpy(address, &vector, sizeof vector);
}

// Six rows by four vectors, in a file of 32 vector registers, leave some for a row of the right and
// a scalar; in a file of 16, six rows by two do.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int tile_vectors = 4;
#else
constexpr int tile_vectors = 2;
#endif
constexpr int tile_rows = 6;

// Products between two looks at what to fetch next.
constexpr i64 strip_depth = 8;

// Sums are taken over at most this many products before they are added to the output: so many rows
// of a panel stay in the cache next to the core.
constexpr i64 most_depth = 256;

template <class T>
constexpr i64 widest_panel = tile_vectors * full_lanes<T>;

// The elements of a widest panel of a quarter of that depth, which is what a thread has scratch for.
template <class T>
constexpr i64 panel_elements = most_depth / 4 * widest_panel<T>;

// The depth for a block of this many columns. Of wide blocks, all rows of a chunk and of the next one,
// which is being fetched, share the second cache.
template <class T>
i64 chunk_depth(i64 columns) {
    constexpr i64 least_depth = 32, cached = 256 * 1024 / sizeof(T);
    const i64 vectors = ceil_div(std::max<i64>(columns, 1), full_lanes<T>);
    const i64 width = std::min<i64>(vectors * full_lanes<T>, widest_panel<T>);
    const i64 depth = std::min(panel_elements<T> / width, cached / std::max<i64>(columns, 1));
    return std::clamp(depth / strip_depth * strip_depth, least_depth, most_depth);
}

// Columns [first, first + columns) of a block, as `vectors` vectors. The last ones may overlap those
// before them, so that no column is left over.
template <class T_, int lanes_, int vectors_>
struct Panel {
    using T = T_;
    static constexpr int lanes = lanes_, vectors = vectors_, width = lanes * vectors;
    static constexpr bool is_full = lanes == full_lanes<T>;
    // The most rows of a tile: what the registers hold, or less where there is little to gain.
    static constexpr int rows = !is_full ? 4 : vectors == 3 ? tile_rows + 2 : tile_rows;
    i64 number, first, columns;

    // Where vector v starts, in bytes from the first column.
    i64 offset(int v) const {
        const i64 last = columns - lanes;
        const bool overlaps = v + 1 == vectors || (!is_full && v > 0);
        return static_cast<i64>(sizeof(T)) * (overlaps ? std::min<i64>(v * lanes, last) : v * lanes);
    }

    void fetch(const char* row) const {
        for (int v = 0; v < vectors; ++v) __builtin_prefetch(row + offset(v), 1);
    }
};

// Where row k of a panel starts, its elements side by side.
struct Right {
    const char* start;
    i64 step;

    const char* operator()(i64 k) const { return start + k * step; }
};

// Rows of memory that are needed next, asked for a few lines at a time beside the products.
class Prefetch {
   public:
    Prefetch() = default;
    Prefetch(const char* start, i64 rows, i64 bytes, i64 step)
        : row(start), rows(rows), bytes(bytes), step(step), at(0), lines(0) {
        // Rows without a gap are one long row.
        if (step == bytes) this->rows = 1, this->bytes = rows * bytes;
    }

    // Asks for all in `times` calls of some().
    void spread(i64 times) {
        lines = ceil_div(rows * ceil_div(bytes, line), std::max<i64>(times, 1));
    }

    void some() {
        for (i64 n = lines; n > 0 && rows > 0; --n) {
            __builtin_prefetch(row + at, 0, 2);
            at += line;
            if (at >= bytes) at = 0, row += step, --rows;
        }
    }

   private:
    static constexpr i64 line = 64;
    const char* row;
    i64 rows, bytes, step, at, lines;
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
            T total[rows][vectors * Panel::lanes];
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

// Rows of the left operand, and where their products are added.
template <int rows>
struct TileRows {
    const char* left[rows];
    char* to[rows];
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
__attribute__((noinline)) void add_products(TileRows<rows> tile_rows, i64 left_step,
                                            i64 left_block_step, Factor* factors, i64 blocks,
                                            i64 depth, i64 to_step, const Panel& panel) {
    using T = typename Panel::T;
    Tile<Panel, rows> tile(panel);
    for (int m = 0; m < rows; ++m) panel.fetch(tile_rows.to[m]);
    for (i64 block = 0; block < blocks; ++block) {
        tile.accumulate(
            depth, [&](int m, i64 k) { return load<T>(tile_rows.left[m] + k * left_step); },
            factors[block].right, factors[block].prefetch);
        for (int m = 0; m < rows; ++m) tile_rows.left[m] += left_block_step;
    }
    tile.add([&](int m) { return tile_rows.to[m]; }, to_step, T(1));
}

template <int n>
using constant = std::integral_constant<int, n>;

// Fewer columns than a full vector has lanes. Few kinds of panels, for each is compiled by itself.
template <class T, class Use>
void use_narrow_panel(i64 columns, const Use& use) {
    constexpr int lanes = full_lanes<T>;
    if constexpr (lanes > 8)
        if (columns >= 8) return use(Panel<T, 8, 2>{0, 0, columns});
    if constexpr (lanes > 4)
        if (columns >= 4) return use(Panel<T, 4, 2>{0, 0, columns});
    use(Panel<T, 1, 3>{0, 0, columns});
}

// How many panels for_each_panel cuts this many columns into.
template <class T>
i64 panel_count(i64 columns) {
    return ceil_div(ceil_div(columns, full_lanes<T>), tile_vectors);
}

// Calls use(panel) for every panel of columns. Panels differ by a vector at the most, and their
// vectors are full if there are columns enough for one.
template <class T, class Use>
void for_each_panel(i64 columns, const Use& use) {
    constexpr int lanes = full_lanes<T>;
    if (columns == 0) return;
    if (columns < lanes) return use_narrow_panel<T>(columns, use);
    i64 vectors = ceil_div(columns, lanes), first = 0, number = 0;
    for (i64 panels = ceil_div(vectors, tile_vectors); panels > 0; --panels, ++number) {
        const i64 here = ceil_div(vectors, panels);
        const i64 width = std::min(here * lanes, columns - first);
        switch (here) {
            case 1: use(Panel<T, lanes, 1>{number, first, width}); break;
            case 2: use(Panel<T, lanes, 2>{number, first, width}); break;
            case 3: if constexpr (tile_vectors > 2) use(Panel<T, lanes, 3>{number, first, width}); break;
            case 4: if constexpr (tile_vectors > 2) use(Panel<T, lanes, 4>{number, first, width}); break;
        }
        first += width;
        vectors -= here;
    }
}

template <int rows, class Use>
void use_tile(i64 count, i64 first, const Use& use) {
    if (count == rows)
        use(constant<rows>{}, first);
    else if constexpr (rows > 1)
        use_tile<rows - 1>(count, first, use);
}

// Calls use(rows, first row) for every tile, `rows` a constant. Tiles differ by a row at the most.
template <int most, class Use>
void for_each_tile(i64 rows, const Use& use) {
    i64 first = 0;
    for (i64 tiles = ceil_div(rows, most); tiles > 0; --tiles) {
        const i64 here = ceil_div(rows - first, tiles);
        use_tile<most>(here, first, use);
        first += here;
    }
}

// Calls use(first, length) for every chunk of the depth.
template <class Use>
void for_each_chunk(i64 depth, i64 chunk, const Use& use) {
    for (i64 k = 0; k < depth; k += chunk) use(k, std::min(depth - k, chunk));
}

}  // namespace blocksparse
