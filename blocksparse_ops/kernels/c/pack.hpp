// Blocks whose rows cannot be read as vectors where they lie, copied into a panel.
#pragma once

#include "tile.hpp"

#include <utility>

namespace blocksparse {

// A square of `lanes` by `lanes` elements, transposed: to[k][n] = from[n][k], steps in bytes.
//
// Pieces of 16 bytes are moved to their place while they are loaded, which costs no shuffle;
// inside of pieces, lanes change places between vectors in rounds, one for each bit of their
// number.
template <class T, int lanes>
class Square {
   public:
    static void transpose(const char* from, i64 from_step, char* to, i64 to_step) {
        V rows[lanes];
#pragma GCC unroll 16
        for (int k = 0; k < lanes; k += piece)
#pragma GCC unroll 16
            for (int n = 0; n < piece; ++n)
                rows[k + n] = gather(from + n * from_step + k * size, piece * from_step,
                                     std::make_integer_sequence<int, lanes / piece>{});
        if constexpr (piece > 1) rounds<piece / 2>(rows);
#pragma GCC unroll 16
        for (int k = 0; k < lanes; ++k) store_vector(to + k * to_step, rows[k]);
    }

   private:
    using V = Vector<T, lanes>;
    static constexpr i64 size = sizeof(T);
    static constexpr int piece = std::min<int>(lanes, 16 / size);

    // Pieces that lie `step` apart, side by side.
    template <int... q>
    static V gather(const char* from, i64 step, std::integer_sequence<int, q...>) {
        if constexpr (sizeof(V) <= 16) {
            return load_vector<V>(from);
        } else {
            using Pieces = Vector<__int128, sizeof...(q)>;
            return reinterpret_cast<V>(Pieces{load_vector<__int128>(from + q * step)...});
        }
    }

    // The lanes of a, and between them those of b, whose numbers have this bit or have it not.
    template <int bit, bool set, int... lane>
    static V pick(const V& a, const V& b, std::integer_sequence<int, lane...>) {
        return __builtin_shufflevector(
            a, b,
            ((lane & bit) ? (set ? lane : lane & ~bit) + lanes : (set ? lane | bit : lane))...);
    }

    template <int bit>
    static void rounds(V* rows) {
        constexpr auto lane = std::make_integer_sequence<int, lanes>{};
#pragma GCC unroll 16
        for (int m = 0; m < lanes; ++m)
            if (!(m & bit)) {
                const V low = pick<bit, false>(rows[m], rows[m + bit], lane);
                rows[m + bit] = pick<bit, true>(rows[m], rows[m + bit], lane);
                rows[m] = low;
            }
        if constexpr (bit > 1) rounds<bit / 2>(rows);
    }
};

// to[k][n] = from[n][k]. The last squares overlap those before them.
template <class T, int lanes>
void transpose(const char* from, i64 from_step, i64 depth, i64 columns, char* to, i64 to_step,
               Prefetch& prefetch) {
    if constexpr (lanes > 1)
        if (depth < lanes || columns < lanes)
            return transpose<T, lanes / 2>(from, from_step, depth, columns, to, to_step, prefetch);
    constexpr i64 size = sizeof(T);
    for (i64 n = 0; n < columns; n += lanes)
        for (i64 k = 0; k < depth; k += lanes) {
            prefetch.some();
            const i64 n0 = std::min(n, columns - lanes), k0 = std::min(k, depth - lanes);
            Square<T, lanes>::transpose(from + n0 * from_step + k0 * size, from_step,
                                       to + k0 * to_step + n0 * size, to_step);
        }
}

// Makes a matrix of which the elements lie any two steps apart readable by rows: where it lies if
// the elements of a row are adjacent, else in the panel.
template <class T, class Panel>
Right by_rows(const char* corner, i64 row_step, i64 column_step, i64 depth, const Panel& panel,
              T* scratch, Prefetch& prefetch) {
    constexpr i64 size = sizeof(T);
    corner += panel.first * column_step;
    char* to = reinterpret_cast<char*>(scratch);
    const i64 to_step = Panel::width * size;
    if (column_step == size) return {corner, row_step};
    if (row_step == size) {
        transpose<T, Panel::lanes>(corner, column_step, depth, panel.columns, to, to_step,
                                   prefetch);
    } else {
        for (i64 k = 0; k < depth; ++k)
            for (i64 n = 0; n < panel.columns; ++n)
                *reinterpret_cast<T*>(to + k * to_step + n * size) =
                    load<T>(corner + k * row_step + n * column_step);
    }
    return {to, to_step};
}

}  // namespace blocksparse
