// Products of a row with some columns of a small block, summed in registers.
//
// An element is summed in chains, by k modulo their number (of a remainder the last k in the last
// chain), which are joined by halves. They are the lanes of one vector where columns are contiguous,
// and a vector each where rows are: so both layouts give the same bits.
#pragma once

#include "panel.hpp"

#include <utility>

namespace blocksparse {

template <class T>
constexpr int most_chains = std::min(vector_bytes, 32) / static_cast<int>(sizeof(T));

// Calls use(count), a constant: the largest power of two up to `most` and up to a size.
template <int most, class Use>
void with_power(i64 size, const Use& use) {
    if constexpr (most > 1)
        if (size < most) return with_power<most / 2>(size, use);
    use(constant<most>{});
}

// Whether each lane's number is `first` or more.
template <class T, int lanes, int... number>
auto lanes_from(i64 first, std::integer_sequence<int, number...>) {
    using Integer = std::conditional_t<sizeof(T) == 8, std::int64_t, std::int32_t>;
    return Vector<Integer, lanes>{number...} >= static_cast<Integer>(first);
}

// The lanes of `more` from number `first` on, and before them those of `less`.
template <class T, int lanes, class V = Vector<T, lanes>>
V select_from(i64 first, const V& more, const V& less) {
    if constexpr (lanes == 1)
        return more;
    else
        return lanes_from<T, lanes>(first, std::make_integer_sequence<int, lanes>{}) ? more : less;
}

// to[q] += sum[q] for all lanes q but the first, `overlap` of them; with a vector of initial values,
// to[q] = initial[q] + sum[q].
template <class T, int lanes>
void add_lanes(const Vector<T, lanes>& sum, i64 overlap, const char* initial, char* to, i64 step) {
    using V = Vector<T, lanes>;
    constexpr i64 size = sizeof(T);
    if (step == size) {
        const V all = load_vector<V>(initial ? initial : to) + sum;
        store_vector(to, overlap ? select_from<T, lanes>(overlap, all, load_vector<V>(to)) : all);
    } else {
        T each[lanes];
        store_vector(reinterpret_cast<char*>(each), sum);
        for (i64 q = overlap; q < lanes; ++q) {
            T& element = *reinterpret_cast<T*>(to + q * step);
            element = (initial ? load<T>(initial + q * size) : element) + each[q];
        }
    }
}

// Rows of the block are contiguous: a vector of columns for each chain.
template <class T, int chains, int lanes_>
class RowSums {
   public:
    static constexpr int lanes = lanes_;

    // Adds left[k] * block[k][.] for k < depth. Steps are in bytes.
    __attribute__((always_inline)) void accumulate(const char* left, i64 left_step,
                                                   const char* block, i64 step, i64 depth) {
        if constexpr (chains == 1) return add(0, left, block);  // the depth is 1
        i64 k = 0;
        for (; k + chains <= depth; k += chains)
#pragma GCC unroll 8
            for (int chain = 0; chain < chains; ++chain)
                add(chain, left + (k + chain) * left_step, block + (k + chain) * step);
        add_last<1>(depth - k, left + depth * left_step, left_step, block + depth * step, step);
    }

    Vector<T, lanes> total() {
#pragma GCC unroll 4
        for (int half = chains / 2; half > 0; half /= 2)
#pragma GCC unroll 8
            for (int chain = 0; chain < half; ++chain) sum[chain] += sum[half + chain];
        return sum[0];
    }

   private:
    using V = Vector<T, lanes>;
    V sum[chains] = {};

    // Adds so many products before the end of a row and of a block, from `back` on.
    template <int back>
    __attribute__((always_inline)) void add_last(i64 count, const char* left, i64 left_step,
                                                 const char* block, i64 step) {
        if constexpr (back < chains) {
            if (count < back) return;
            add(chains - back, left - back * left_step, block - back * step);
            add_last<back + 1>(count, left, left_step, block, step);
        }
    }

    void add(int chain, const char* left, const char* row) {
        sum[chain] += load<T>(left) * load_vector<V>(row);
    }
};

// Of the lanes of two vectors, numbered one after the other, those that hold one half (0 or 1) of
// the chains of each column.
template <int chains, int half, class V, int... lane>
auto half_of(const V& one, const V& other, std::integer_sequence<int, lane...>) {
    constexpr int kept = chains / 2;
    if constexpr (sizeof...(lane) == 1)
        return one[half];
    else
        return __builtin_shufflevector(one, other,
                                       (lane / kept * chains + half * kept + lane % kept)...);
}

template <class V, int... lane>
auto both(const V& one, const V& other, std::integer_sequence<int, lane...>) {
    return __builtin_shufflevector(one, other, lane...);
}

// The sums of columns, in one vector, from their chains. A vector holds as many columns as it has
// lanes for.
template <class T, int chains, int vectors, class V>
auto join(const V* vector) {
    constexpr int lanes = sizeof(V) / sizeof(T), pairs = std::max(vectors / 2, 1);
    if constexpr (chains > 1) {
        constexpr auto kept =
            std::make_integer_sequence<int, vectors == 1 ? lanes / 2 : lanes>{};
        Vector<T, kept.size()> joined[pairs];
        for (int k = 0; k < pairs; ++k) {
            const V &one = vector[2 * k], &other = vector[std::min(2 * k + 1, vectors - 1)];
            joined[k] = half_of<chains, 0>(one, other, kept) + half_of<chains, 1>(one, other, kept);
        }
        return join<T, chains / 2, pairs>(joined);
    } else if constexpr (vectors > 1) {
        Vector<T, 2 * lanes> joined[pairs];
        for (int k = 0; k < pairs; ++k)
            if constexpr (lanes == 1)
                joined[k] = Vector<T, 2>{vector[2 * k], vector[2 * k + 1]};
            else
                joined[k] = both(vector[2 * k], vector[2 * k + 1],
                                 std::make_integer_sequence<int, 2 * lanes>{});
        return join<T, 1, pairs>(joined);
    } else {
        return vector[0];
    }
}

// Columns of the block are contiguous, and the row is: a vector of chains for each column.
template <class T, int chains, int lanes_>
class ColumnSums {
   public:
    static constexpr int lanes = lanes_;

    __attribute__((always_inline)) void accumulate(const char* left, i64, const char* block,
                                                   i64 step, i64 depth) {
        if constexpr (chains == 1) return add(left, block, step, 0, 0);  // the depth is 1
        i64 k = 0;
        for (; k + chains <= depth; k += chains) add(left, block, step, k, 0);
        if (k < depth) add(left, block, step, depth - chains, k + chains - depth);
    }

    Vector<T, lanes> total() const { return join<T, chains, lanes>(sum); }

   private:
    using V = Vector<T, chains>;
    V sum[lanes] = {};

    // Adds the chains from number `first` on.
    __attribute__((always_inline)) void add(const char* left, const char* block, i64 step, i64 k,
                                            i64 first) {
        constexpr i64 size = sizeof(T);
        const V factor = load_vector<V>(left + k * size);
#pragma GCC unroll 4
        for (int q = 0; q < lanes; ++q) {
            const V more = sum[q] + factor * load_vector<V>(block + q * step + k * size);
            sum[q] = first ? select_from<T, chains>(first, more, sum[q]) : more;
        }
    }
};

}  // namespace blocksparse
