// How a block is cut: its columns into panels, its depth into chunks, rows into tiles.
#pragma once

#include "vector.hpp"

#include <algorithm>
#include <type_traits>

namespace blocksparse {

inline i64 ceil_div(i64 a, i64 b) { return (a + b - 1) / b; }

// Of 32 vector registers, 6 x 4 accumulators leave enough for a row of the right operand and a
// broadcast scalar; of 16, 6 x 2 do.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int tile_vectors = 4;
#else
constexpr int tile_vectors = 2;
#endif
constexpr int tile_rows = 6;

// Columns [first, first + columns) of a block, as `vectors` vectors. The last ones may overlap
// those before them, so that there are no remainder columns.
template <class T_, int lanes_, int vectors_>
struct Panel {
    using T = T_;
    static constexpr int lanes = lanes_, vectors = vectors_, width = lanes * vectors;
    static constexpr bool is_full = lanes == full_lanes<T>;
    // 8 x 3 accumulators are as many as 6 x 4. Narrow panels gain little from more than 4 rows.
    static constexpr int rows = !is_full ? 4 : vectors == 3 ? tile_rows + 2 : tile_rows;
    i64 number, first, columns;

    // Where a vector starts, in bytes from the first column.
    i64 offset(int vec) const {
        const i64 last = columns - lanes;
        const bool overlaps = vec + 1 == vectors || (!is_full && vec > 0);
        const i64 column = overlaps ? std::min<i64>(vec * lanes, last) : vec * lanes;
        return static_cast<i64>(sizeof(T)) * column;
    }

    void copy(const char* from, char* to) const {
        for (int vec = 0; vec < vectors; ++vec)
            store_vector(to + offset(vec), load_vector<Vector<T, lanes>>(from + offset(vec)));
    }

    void prefetch(const char* row) const {
        for (int vec = 0; vec < vectors; ++vec) __builtin_prefetch(row + offset(vec), 1);
    }
};

// Columns cut into panels that differ by a vector at most, of full vectors if the columns fill one.
template <class T>
class Panels {
   public:
    explicit Panels(i64 columns)
        : columns(columns),
          vectors(ceil_div(columns, lanes)),
          count(ceil_div(vectors, tile_vectors)) {}

    i64 size() const { return count; }

    // The first column of a panel; for number size(), the number of columns. The last panel is not
    // smaller than others: of several, each has a whole vector for the last one to overlap.
    i64 start(i64 number) const {
        return number == count ? columns : number * vectors / count * lanes;
    }

    // Calls use(panel) for panels [first, end).
    template <class Use>
    void for_each(i64 first, i64 end, const Use& use) const {
        for (i64 number = first; number < end; ++number) {
            const i64 column = start(number), width = start(number + 1) - column;
            if (width < lanes)
                use_narrow(width, use);
            else
                use_full<tile_vectors>(number, column, width, use);
        }
    }

   private:
    static constexpr int lanes = full_lanes<T>;
    i64 columns, vectors, count;

    template <int most, class Use>
    static void use_full(i64 number, i64 column, i64 width, const Use& use) {
        if constexpr (most > 1)
            if (width <= (most - 1) * lanes)
                return use_full<most - 1>(number, column, width, use);
        use(Panel<T, lanes, most>{number, column, width});
    }

    // Fewer columns than a full vector has lanes. Few widths: each is an instantiation.
    template <class Use>
    static void use_narrow(i64 width, const Use& use) {
        if constexpr (lanes > 8)
            if (width >= 8) return use(Panel<T, 8, 2>{0, 0, width});
        if constexpr (lanes > 4)
            if (width >= 4) return use(Panel<T, 4, 2>{0, 0, width});
        use(Panel<T, 1, 3>{0, 0, width});
    }
};

// Depth between two calls of Prefetch::issue.
constexpr i64 strip_depth = 8;

// The largest depth of a chunk, whose sums are added to the output before the next chunk's.
constexpr i64 most_depth = 256;

template <class T>
constexpr i64 widest_panel = tile_vectors * full_lanes<T>;

constexpr i64 page = 4096;

// A packed panel that stays in L1, of at most 16 KiB: the widest of a quarter of most_depth, or a
// narrower one of more. The page behind it keeps the hardware prefetcher off another thread's.
template <class T>
struct alignas(page) Scratch {
    static constexpr i64 size = most_depth / 4 * widest_panel<T>;
    T elements[size];
    char gap[page];
};

// A chunk's depth for a block of this many columns. A chunk of all columns of a wide block and the
// next one, which is being prefetched, fit into L2 together.
template <class T>
i64 chunk_depth(i64 columns) {
    constexpr i64 least_depth = 32, in_l2 = 256 * 1024 / sizeof(T);
    const i64 vectors = ceil_div(std::max<i64>(columns, 1), full_lanes<T>);
    const i64 narrowest = Panel<T, 1, 3>::width;
    const i64 width = std::max(narrowest, std::min<i64>(vectors * full_lanes<T>, widest_panel<T>));
    const i64 depth = std::min(Scratch<T>::size / width, in_l2 / std::max<i64>(columns, 1));
    return std::clamp(depth / strip_depth * strip_depth, least_depth, most_depth);
}

// Calls use(first, length) for every chunk of the depth.
template <class Use>
void for_each_chunk(i64 depth, i64 chunk, const Use& use) {
    for (i64 k = 0; k < depth; k += chunk) use(k, std::min(depth - k, chunk));
}

template <int n>
using constant = std::integral_constant<int, n>;

template <int rows, class Use>
void use_tile(i64 count, i64 first, const Use& use) {
    if (count == rows)
        use(constant<rows>{}, first);
    else if constexpr (rows > 1)
        use_tile<rows - 1>(count, first, use);
}

// Calls use(rows, first row) for every tile, `rows` a constant. Tiles differ by a row at most.
template <int most, class Use>
void for_each_tile(i64 rows, const Use& use) {
    i64 first = 0;
    for (i64 tiles = ceil_div(rows, most); tiles > 0; --tiles) {
        const i64 here = ceil_div(rows - first, tiles);
        use_tile<most>(here, first, use);
        first += here;
    }
}

}  // namespace blocksparse
