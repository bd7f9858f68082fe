// Both ops triple after triple, as the examples stand: of small blocks a plan takes longer than the
// products.
#pragma once

#include "ahead.hpp"
#include "choose.hpp"
#include "product.hpp"
#include "rows.hpp"
#include "split.hpp"

namespace blocksparse {

// o[n, w] += sum_v h[n, v] @ W[inputIdx[n, v], outputIdx[n, w]]
template <class T, bool padded = false>
class DirectGemv {
   public:
    static constexpr int arguments = 5;  // o, W, h, inputIdx, outputIdx
    static constexpr bool can_start = !padded;

    // Checks, and allocates all that work() needs. Writes nothing of the caller's.
    Fault prepare(const Array* args, const SizePair* equal_sizes, int pair_count,
                  const Thresholds& thresholds, int most_threads) {
        if (Fault fault = p.prepare(args, arguments, equal_sizes, pair_count)) return fault;
        workers = threads_for(p.batch * p.inputs * p.outputs, p.depth * p.columns, thresholds,
                              most_threads);
        if constexpr (padded) scratch = Buffer<std::uint64_t>(workers * Places::words(p.inputs));
        line.prepare(p.W, p.indices, p.inputs, p.outputs);
        line.set(p.W, p.indices);
        return {};
    }

    // Whether each element of the output is a sum of some products.
    bool writes_all() const { return p.inputs && p.depth && p.columns; }

    // Has all sums start from one value, whatever the output holds.
    void start_from(const char* value) {
        starts = true;
        std::fill_n(start, full_lanes<T>, load<T>(value));
    }

    // To be called before work(). `array` holds the initial values, if all do not start from one.
    void place(const Array& array) { p.out = array; }

    int threads() const { return workers; }

    // The work of one thread, some of the rows n * outputs + w; all may run at once.
    void work(int thread) {
        std::uint64_t* const words = scratch.begin() + thread * Places::words(p.inputs);
        const Share rows(p.batch * p.outputs, thread, workers);
        if (!writes_all() || rows.first == rows.last) return;
        const bool has_rows = p.W.strides[3] == size;
        const bool has_columns = p.W.strides[2] == size && p.h.strides[2] == size;
        // One by one where the output has gaps.
        const i64 columns = p.out.strides[2] == size ? p.columns : 1;
        const bool together = line && p.columns == 1 && p.out.strides[0] == size &&
                              (has_columns || p.depth == 1);
        with_power<most_chains<T>>(p.depth, [&](auto chains) {
            if (together)
                add_together<chains()>(rows);
            else if (has_columns && (p.columns == 1 || !has_rows))
                with_power<most_columns>(columns, [&](auto lanes) {
                    add<ColumnSums<T, chains(), lanes()>>(rows, p.W.strides[3], words);
                });
            else
                with_power<full_lanes<T>>(has_rows ? columns : 1, [&](auto lanes) {
                    add<RowSums<T, chains(), lanes()>>(rows, p.W.strides[2], words);
                });
        });
    }

   private:
    static constexpr i64 size = sizeof(T);
    static constexpr int most_columns = std::min(most_sums, full_lanes<T>);

    Product<T> p;
    int workers;
    Line line;
    Buffer<std::uint64_t> scratch;
    bool starts = false;
    T start[full_lanes<T>];

    const char* initial() const { return starts ? reinterpret_cast<const char*>(start) : nullptr; }

    template <class Sums>
    void add(const Share& rows, i64 step, std::uint64_t* words) const {
        with_loops<padded, Sums::lanes, Sums::most_vectors>(
            line, p.columns, [&](auto loops, auto vectors) {
                add_rows<Sums, loops(), vectors()>(rows, step, words);
            });
    }

    // Blocks of one column: the lanes are those of so many rows.
    template <int chains>
    __attribute__((noinline)) void add_together(const Share& rows) const {
        constexpr int lanes = full_lanes<T>;
        Window<Loops::line> window(p.h, p.out, p.W, p.indices, line, rows.first, nullptr);
        Ahead ahead(p.W, size, p.indices, 1, 1, rows.last);
        i64 row = rows.first;
        for (; row + lanes <= rows.last; row += lanes) {
            char* const to = window.out;
            const char *left[lanes], *block[lanes];
            for_each<lanes>([&](auto k) __attribute__((always_inline)) {
                ahead.prefetch_from(row + k());
                left[k()] = window.in, block[k()] = window.block(0);
                window.next();
            });
            ColumnSums<T, chains, lanes> sums;
            sums.accumulate_rows(left, block, p.depth);
            add_lanes<T, lanes>(sums.template total<0>(), 0, initial(), to);
        }
        add_rows<ColumnSums<T, chains, 1>, Loops::line, 1>({row, rows.last}, 0, nullptr);
    }

    template <class Sums, Loops loops, int all_vectors>
    __attribute__((noinline)) void add_rows(const Share& rows, i64 step,
                                            std::uint64_t* words) const {
        constexpr i64 lanes = Sums::lanes;
        const Array &W = p.W, &h = p.h, &out = p.out;
        const i64 depth = p.depth, columns = all_vectors ? all_vectors * lanes : p.columns;
        const i64 h_step = h.strides[1], left_step = h.strides[2], to_step = out.strides[2];
        const i64 column_step = W.strides[3];
        const char* const initial = this->initial();
        Window<loops> window(h, out, W, p.indices, line, rows.first, words);
        Ahead ahead(W, size, p.indices, window.inputs, window.outputs, rows.last);
        for (i64 row = rows.first; row < rows.last; ++row, window.next()) {
            ahead.prefetch_from(row);
            if (window.is_padded()) continue;
            const auto add = [&](auto vectors, i64 q, i64 overlap = 0)
                                 __attribute__((always_inline)) {
                typename Sums::template Of<vectors()> sums;
                for (auto v = window.first_input(); v; v.next()) {
                    short_loop();
                    sums.accumulate(window.in + *v * h_step, left_step,
                                    window.block(*v) + q * column_step, step, depth);
                }
                char* const to = window.out + q * to_step;
                for_each<vectors()>([&](auto vec) __attribute__((always_inline)) {
                    add_lanes<T, lanes>(sums.template total<vec()>(), overlap, initial,
                                        to + vec() * lanes * size);
                });
            };
            if constexpr (all_vectors) {
                add(constant<all_vectors>{}, 0);
            } else {
                const i64 q = for_each_vector<lanes, Sums::most_vectors>(columns, add);
                // A vector that overlaps another: narrower ones would sum one after the other.
                const i64 last = columns - lanes;
                if (lanes > 1 && q < columns) add(constant<1>{}, last, q - last);
            }
        }
    }
};

// o[xIdx[n, v], yIdx[n, w]] += alpha * outer(x[n, v], y[n, w])
template <class T, bool padded = false>
class DirectOuter {
   public:
    static constexpr int arguments = 6;  // o, x, y, xIdx, yIdx, alpha
    static constexpr bool can_start = false;

    // Checks, and allocates all that work() needs. Writes nothing of the caller's.
    Fault prepare(const Array* args, const SizePair* equal_sizes, int pair_count,
                  const Thresholds& thresholds, int most_threads) {
        x = args[1];
        y = args[2];
        alpha = load<T>(args[5].data);
        const i64 batch = x.shape[0], inputs = x.shape[1], outputs = y.shape[1];
        if (Fault fault = check(args, arguments, equal_sizes, pair_count, batch, inputs, outputs,
                                args[0].shape[0], args[0].shape[1], indices))
            return fault;
        workers = threads_for(batch * inputs * outputs, x.shape[2] * y.shape[2], thresholds,
                              most_threads);
        if constexpr (padded) scratch = Buffer<std::uint64_t>(workers * Places::words(inputs));
        line.prepare(args[0], indices, inputs, outputs);
        return {};
    }

    // To be called before work(). `array` holds the initial values.
    void place(const Array& array) {
        out = array;
        line.set(out, indices);
    }

    int threads() const { return workers; }

    // The work of one thread, some of the blocks i * oBlocks + j; all may run at once.
    void work(int thread) {
        std::uint64_t* const words = scratch.begin() + thread * Places::words(x.shape[1]);
        const Share blocks(out.shape[0] * out.shape[1], thread, workers);
        if (!out.shape[2] || !out.shape[3] || !x.shape[0] || !y.shape[1] || alpha == 0) return;
        // Where columns are contiguous, the sides change places.
        const bool swaps = out.strides[2] == size && (out.shape[3] == 1 || out.strides[3] != size);
        swaps ? add_by_lanes({3, 2, y.strides[2], x.strides[2]}, blocks, words)
              : add_by_lanes({2, 3, x.strides[2], y.strides[2]}, blocks, words);
    }

   private:
    static constexpr i64 size = sizeof(T);

    // The axes of `out` along which blocks have rows and columns, and the steps of what is
    // multiplied: of the left operand, an element a row, and of the right one, an element a column.
    struct Sides {
        int row, column;
        i64 left_step, right_step;
    };

    Array out, x, y;
    T alpha;
    Indices indices;
    int workers;
    Line line;
    Buffer<std::uint64_t> scratch;

    void add_by_lanes(const Sides& sides, const Share& blocks, std::uint64_t* words) const {
        const bool has_rows = out.strides[sides.column] == size && sides.right_step == size;
        with_power<full_lanes<T>>(has_rows ? out.shape[sides.column] : 1, [&](auto lanes) {
            with_loops<padded, lanes(), most_at_once<T, lanes()>>(
                line, out.shape[sides.column], [&](auto loops, auto vectors) {
                    add_blocks<lanes(), loops(), vectors()>(sides, blocks, words);
                });
        });
    }

    template <int lanes, Loops loops, int all_vectors>
    __attribute__((noinline)) void add_blocks(const Sides& sides, const Share& blocks,
                                              std::uint64_t* words) const {
        const i64 x_step = x.strides[1], rows = x.shape[0] * y.shape[1];
        const bool swaps = sides.row == 3;
        const Block<lanes, all_vectors> block(out, sides, alpha);
        Window<loops> window(x, y, out, indices, line, 0, words);
        Ahead ahead(out, size, indices, window.inputs, window.outputs, rows);
        for (i64 row = 0; row < rows; ++row, window.next()) {
            ahead.prefetch_from(row);
            if (window.is_padded()) continue;
            for (auto v = window.first_input(); v; v.next()) {
                short_loop();
                if (!blocks.has(window.number(*v))) continue;
                char* const to = window.block(*v);
                const char *of_x = window.in + *v * x_step, *of_y = window.out;
                swaps ? block.add(to, of_y, of_x) : block.add(to, of_x, of_y);
            }
        }
    }

    // All that blocks have in common.
    template <int lanes, int all_vectors>
    class Block {
       public:
        Block(const Array& out, const Sides& sides, T alpha)
            : rows(out.shape[sides.row]), row_step(out.strides[sides.row]),
              columns(all_vectors ? all_vectors * lanes : out.shape[sides.column]),
              column_step(out.strides[sides.column]),
              left_step(sides.left_step), right_step(sides.right_step), alpha(alpha) {}

        // to[k][q] += alpha * left[k] * right[q]
        __attribute__((always_inline)) void add(char* to, const char* left,
                                                const char* right) const {
            const auto add = [&](auto vectors, i64 q) __attribute__((always_inline)) {
                add_vectors<vectors(), lanes>(to, left, right, q);
            };
            if constexpr (all_vectors) {
                add(constant<all_vectors>{}, 0);
            } else {
                const i64 q = for_each_vector<lanes, most_at_once<T, lanes>>(columns, add);
                add_rest<lanes / 2>(to, left, right, q);
            }
        }

       private:
        const i64 rows, row_step, columns, column_step, left_step, right_step;
        const T alpha;

        template <int vectors, int width>
        __attribute__((always_inline)) void add_vectors(char* to, const char* left,
                                                        const char* right, i64 q) const {
            using V = Vector<T, width>;
            V factor[vectors];
            right += q * right_step, to += q * column_step;
            for_each<vectors>([&](auto vec) __attribute__((always_inline)) {
                factor[vec()] = load_vector<V>(right + vec() * sizeof(V));
            });
            for (i64 k = 0; k < rows; ++k, to += row_step, left += left_step) {
                short_loop();
                const T at = load<T>(left);
                for_each<vectors>([&](auto vec) __attribute__((always_inline)) {
                    char* const place = to + vec() * sizeof(V);
                    store_vector(place, load_vector<V>(place) + alpha * (at * factor[vec()]));
                });
            }
        }

        // In narrower vectors: one that overlaps another waits for what was just written.
        template <int width>
        __attribute__((always_inline)) void add_rest(char* to, const char* left,
                                                     const char* right, i64 q) const {
            if constexpr (width > 0) {
                if (q + width <= columns) add_vectors<1, width>(to, left, right, q), q += width;
                add_rest<width / 2>(to, left, right, q);
            }
        }
    };
};

}  // namespace blocksparse
