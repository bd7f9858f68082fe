// Products of a row with some columns of a small block, summed in registers.
//
// An element is summed in chains, by k modulo their number (of a remainder the last k in the last
// chain), which are joined by halves. They are the lanes of one vector where columns are
// contiguous, and a vector each where rows are: so both layouts give the same bits.
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

// to[q] += sum[q] for all lanes q but the first, `overlap` of them; with a vector of initial
// values, to[q] = initial[q] + sum[q].
template <class T, int lanes>
void add_lanes(const Vector<T, lanes>& sum, i64 overlap, const char* initial, char* to) {
    using V = Vector<T, lanes>;
    const V all = load_vector<V>(initial ? initial : to) + sum;
    store_vector(to, overlap ? select_from<T, lanes>(overlap, all, load_vector<V>(to)) : all);
}

// So many vectors of columns are added to at once; there is but one that is not full.
template <class T, int lanes>
constexpr int most_at_once = lanes > 1 && lanes == full_lanes<T> ? 4 : 1;

// So many sums are in registers.
constexpr int most_sums = 8;

// How many vectors of columns are, of so many lanes and of so many sums each.
template <class T, int lanes, int sums>
constexpr int vectors_in_registers =
    std::max(std::min(most_at_once<T, lanes>, most_sums / sums), 1);

// Calls use(count), a constant: of how many full vectors columns are, a power of two up to `most`,
// or 0.
template <int lanes, int most, class Use>
void with_vectors(i64 columns, const Use& use) {
    if (columns == most * lanes) return use(constant<most>{});
    if constexpr (most > 1)
        with_vectors<lanes, most / 2>(columns, use);
    else
        use(constant<0>{});
}

// Calls use(vectors, column) for some vectors of columns at once, their number a constant; returns
// the column from which on less than a vector is left.
template <int lanes, int most, class Use>
__attribute__((always_inline)) inline i64 for_each_vector(i64 columns, const Use& use) {
    i64 column = 0;
    if constexpr (most > 1)
        for (; column + most * lanes <= columns; column += most * lanes)
            use(constant<most>{}, column);
    for (; column + lanes <= columns; column += lanes) {
        short_loop();
        use(constant<1>{}, column);
    }
    return column;
}

// Calls use(k) for all k < count, each a constant: sums that a loop counts would lie in memory.
template <class Use, int... k>
__attribute__((always_inline)) inline void for_each_of(std::integer_sequence<int, k...>,
                                                       const Use& use) {
    (use(constant<k>{}), ...);
}

template <int count, class Use>
__attribute__((always_inline)) inline void for_each(const Use& use) {
    for_each_of(std::make_integer_sequence<int, count>{}, use);
}

// Calls use(k) for each k by which all chains begin anew; returns how many products are left over.
template <class T, int chains, class Use>
__attribute__((always_inline)) inline i64 for_each_chains(i64 depth, const Use& use) {
    i64 k = 0;
    if constexpr (chains < most_chains<T>) {  // the depth is less than twice as much
        use(k), k += chains;
    } else {
        for (; k + chains <= depth; k += chains) use(k);
    }
    return chains == 1 ? 0 : depth - k;
}

// Rows of the block are contiguous: vectors of columns for each chain.
template <class T, int chains, int lanes_, int vectors = 1>
class RowSums {
   public:
    static constexpr int lanes = lanes_, most_vectors = vectors_in_registers<T, lanes, chains>;
    template <int count>
    using Of = RowSums<T, chains, lanes, count>;

    // Adds left[k] * block[k][.] for k < depth. Steps are in bytes.
    __attribute__((always_inline)) void accumulate(const char* left, i64 left_step,
                                                   const char* block, i64 step, i64 depth) {
        const i64 left_over = for_each_chains<T, chains>(
            depth, [&](i64 k) __attribute__((always_inline)) {
                for_each<chains>([&](auto chain) __attribute__((always_inline)) {
                    add<chain()>(left + (k + chain()) * left_step, block + (k + chain()) * step);
                });
            });
        add_last<1>(left_over, left + depth * left_step, left_step, block + depth * step, step);
    }

    // The sums of one vector.
    template <int vec>
    Vector<T, lanes> total() const {
        return joined<0, 1>(sum[vec]);
    }

   private:
    using V = Vector<T, lanes>;
    V sum[vectors][chains] = {};

    // Adds so many products before the end of a row and of a block, from `back` on.
    template <int back>
    __attribute__((always_inline)) void add_last(i64 count, const char* left, i64 left_step,
                                                 const char* block, i64 step) {
        if constexpr (back < chains) {
            if (count < back) return;
            add<chains - back>(left - back * left_step, block - back * step);
            add_last<back + 1>(count, left, left_step, block, step);
        }
    }

    template <int chain>
    __attribute__((always_inline)) void add(const char* left, const char* row) {
        const T at = load<T>(left);
        for_each<vectors>([&](auto vec) __attribute__((always_inline)) {
            sum[vec()][chain] += at * load_vector<V>(row + vec() * sizeof(V));
        });
    }

    // The sum of chains k, k + count, k + 2 * count and so on.
    template <int k, int count>
    static V joined(const V (&chain)[chains]) {
        if constexpr (count == chains)
            return chain[k];
        else
            return joined<k, 2 * count>(chain) + joined<k + count, 2 * count>(chain);
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
        for_each<pairs>([&](auto k) __attribute__((always_inline)) {
            const V &one = vector[2 * k()], &other = vector[std::min(2 * k() + 1, vectors - 1)];
            joined[k()] =
                half_of<chains, 0>(one, other, kept) + half_of<chains, 1>(one, other, kept);
        });
        return join<T, chains / 2, pairs>(joined);
    } else if constexpr (vectors > 1) {
        Vector<T, 2 * lanes> joined[pairs];
        for_each<pairs>([&](auto k) __attribute__((always_inline)) {
            if constexpr (lanes == 1)
                joined[k()] = Vector<T, 2>{vector[2 * k()], vector[2 * k() + 1]};
            else
                joined[k()] = both(vector[2 * k()], vector[2 * k() + 1],
                                   std::make_integer_sequence<int, 2 * lanes>{});
        });
        return join<T, 1, pairs>(joined);
    } else {
        return vector[0];
    }
}

// Columns of the block are contiguous, and the row is: a vector of chains for each column.
template <class T, int chains, int lanes_, int vectors = 1>
class ColumnSums {
   public:
    static constexpr int lanes = lanes_, most_vectors = vectors_in_registers<T, lanes, lanes>;
    template <int count>
    using Of = ColumnSums<T, chains, lanes, count>;

    __attribute__((always_inline)) void accumulate(const char* left, i64, const char* block,
                                                   i64 step, i64 depth) {
        accumulate_of([&](i64) { return left; }, [&](i64 q) { return block + q * step; }, depth);
    }

    // Of each lane a row of its own, and a block that has one column.
    __attribute__((always_inline)) void accumulate_rows(const char* const* left,
                                                        const char* const* block, i64 depth) {
        accumulate_of([&](i64 q) { return left[q]; }, [&](i64 q) { return block[q]; }, depth);
    }

    template <int vec>
    Vector<T, lanes> total() const {
        return join<T, chains, lanes>(sum + vec * lanes);
    }

   private:
    using V = Vector<T, chains>;
    V sum[vectors * lanes] = {};

    template <class Left, class Column>
    __attribute__((always_inline)) void accumulate_of(const Left& left, const Column& column,
                                                      i64 depth) {
        const i64 left_over = for_each_chains<T, chains>(
            depth, [&](i64 k) __attribute__((always_inline)) { add(left, column, k, 0); });
        if (chains > 1 && left_over) add(left, column, depth - chains, chains - left_over);
    }

    // Adds the chains from number `first` on.
    template <class Left, class Column>
    __attribute__((always_inline)) void add(const Left& left, const Column& column, i64 k,
                                            i64 first) {
        constexpr i64 size = sizeof(T);
        for_each<vectors * lanes>([&](auto q) __attribute__((always_inline)) {
            const V factor = load_vector<V>(left(q()) + k * size);
            const V more = sum[q()] + factor * load_vector<V>(column(q()) + k * size);
            sum[q()] = first ? select_from<T, chains>(first, more, sum[q()]) : more;
        });
    }
};

}  // namespace blocksparse
