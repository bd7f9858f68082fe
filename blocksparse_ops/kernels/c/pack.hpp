// Packing: panels whose rows are not contiguous, copied into scratch where they are.
#pragma once

#include "tile.hpp"

#include <utility>

namespace blocksparse {

// A square of `lanes` by `lanes` elements, transposed: to[k][q] = from[q][k], steps in bytes.
//
// Pieces of 128 bits are loaded to their place, which costs no shuffle. Inside of pieces, vectors
// exchange lanes by shuffles, in a round for each bit of a lane's number.
template <class T, int lanes>
class Square {
   public:
    static void transpose(const char* from, i64 from_step, char* to, i64 to_step) {
        V rows[lanes];
#pragma GCC unroll 16
        for (int k = 0; k < lanes; k += piece)
#pragma GCC unroll 16
            for (int q = 0; q < piece; ++q)
                rows[k + q] = gather(from + q * from_step + k * size, piece * from_step,
                                     std::make_integer_sequence<int, lanes / piece>{});
        if constexpr (piece > 1) rounds<piece / 2>(rows);
#pragma GCC unroll 16
        for (int k = 0; k < lanes; ++k) store_vector(to + k * to_step, rows[k]);
    }

   private:
    using V = Vector<T, lanes>;
    static constexpr i64 size = sizeof(T);
    static constexpr int piece = std::min<int>(lanes, 16 / size);

    // Pieces `step` bytes apart, as one vector.
    template <int... number>
    static V gather(const char* from, i64 step, std::integer_sequence<int, number...>) {
        if constexpr (sizeof(V) <= 16) {
            return load_vector<V>(from);
        } else {
            using Pieces = Vector<__int128, sizeof...(number)>;
            return reinterpret_cast<V>(Pieces{load_vector<__int128>(from + number * step)...});
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

// to[k][q] = from[q][k]. The last squares overlap those before them.
template <class T, int lanes>
void transpose(const char* from, i64 from_step, i64 depth, i64 columns, char* to, i64 to_step,
               Prefetch& prefetch) {
    if constexpr (lanes > 1)
        if (depth < lanes || columns < lanes)
            return transpose<T, lanes / 2>(from, from_step, depth, columns, to, to_step, prefetch);
    constexpr i64 size = sizeof(T);
    for (i64 q = 0; q < columns; q += lanes)
        for (i64 k = 0; k < depth; k += lanes) {
            prefetch.issue();
            const i64 q0 = std::min(q, columns - lanes), k0 = std::min(k, depth - lanes);
            Square<T, lanes>::transpose(from + q0 * from_step + k0 * size, from_step,
                                       to + k0 * to_step + q0 * size, to_step);
        }
}

// A panel of a matrix of any two strides, as a tile reads it: in place if its rows are contiguous,
// else packed into the scratch.
template <class T, class Panel>
Right pack_if_strided(const char* corner, i64 row_step, i64 column_step, i64 depth,
                      const Panel& panel, T* scratch, Prefetch& prefetch) {
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
            for (i64 q = 0; q < panel.columns; ++q)
                *reinterpret_cast<T*>(to + k * to_step + q * size) =
                    load<T>(corner + k * row_step + q * column_step);
    }
    return {to, to_step};
}

}  // namespace blocksparse
