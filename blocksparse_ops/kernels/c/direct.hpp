// Both ops triple after triple, as the examples stand: of small blocks a plan takes longer than the
// products.
#pragma once

#include "ahead.hpp"
#include "choose.hpp"
#include "places.hpp"
#include "product.hpp"
#include "split.hpp"
#include "sums.hpp"

namespace blocksparse {

// The rows of both windows, one row of the output after the other. If `padded`, places of these may
// be.
//
// If `single`, each window has one place: loops over them take longer than small products do. So do
// those over the vectors of a block, if it has so many and all are full: `all_vectors`, below.
template <bool single, bool padded>
class Window {
   public:
    Window(const Array& in, const Array& out, const Indices& indices, i64 row,
           std::uint64_t* words)
        : inputs(single ? 1 : in.shape[1]), outputs(single ? 1 : out.shape[1]),
          places(inputs, words), examples_left(in.shape[0] - row / outputs) {
        const i64 n = row / outputs;
        w = row - n * outputs;
        in_step = in.strides[0];
        out_step = out.strides[1], next_out = out.strides[0] - (outputs - 1) * out_step;
        this->in = in.data + n * in_step;
        this->out = out.data + n * out.strides[0] + w * out_step;
        input = indices.input.begin() + n * inputs;
        output = indices.output.begin() + row;
        if constexpr (padded) places.enter(input);
    }

    const i64 inputs, outputs;
    char *in, *out;             // place 0 of the input window, place w of the output window
    const i64 *input, *output;  // their blocks

    // Whether nothing is added at this row, or from it.
    bool is_padded() const { return padded && (*output == no_block || places.is_empty); }

    // The first place of the input window. Not a function of all of them: what it captured would be
    // read anew for each.
    auto first_input() const {
        if constexpr (padded)
            return places.first();
        else
            return AnyPlace(inputs);
    }

    void next() {
        ++output;
        if (++w < outputs) {
            out += out_step;
            return;
        }
        w = 0, input += inputs, in += in_step, out += next_out;
        if constexpr (padded)
            if (--examples_left) places.enter(input);
    }

   private:
    Places places;
    i64 examples_left, w, in_step, out_step, next_out;
};

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
        with_power<most_chains<T>>(p.depth, [&](auto chains) {
            if (has_columns && (p.columns == 1 || !has_rows))
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
    static constexpr int most_columns = std::min(4, full_lanes<T>);

    Product<T> p;
    int workers;
    Buffer<std::uint64_t> scratch;
    bool starts = false;
    T start[full_lanes<T>];

    template <class Sums>
    void add(const Share& rows, i64 step, std::uint64_t* words) const {
        const bool single = !padded && p.inputs == 1 && p.outputs == 1;
        if (!single) return add_rows<Sums, false, 0>(rows, step, words);
        if constexpr (!padded)
            with_vectors<Sums::lanes, Sums::most_vectors>(p.columns, [&](auto vectors) {
                add_rows<Sums, true, vectors()>(rows, step, words);
            });
    }

    template <class Sums, bool single, int all_vectors>
    __attribute__((noinline)) void add_rows(const Share& rows, i64 step,
                                            std::uint64_t* words) const {
        constexpr i64 lanes = Sums::lanes;
        const Array &W = p.W, &h = p.h, &out = p.out;
        const i64 depth = p.depth, columns = all_vectors ? all_vectors * lanes : p.columns;
        const i64 h_step = h.strides[1], left_step = h.strides[2], to_step = out.strides[2];
        const i64 i_step = W.strides[0], j_step = W.strides[1], column_step = W.strides[3];
        const char* const all_blocks = W.data;
        const char* const initial = starts ? reinterpret_cast<const char*>(start) : nullptr;
        Window<single, padded> window(h, out, p.indices, rows.first, words);
        Ahead ahead(W, size, p.indices, window.inputs, window.outputs, rows.last);
        for (i64 row = rows.first; row < rows.last; ++row, window.next()) {
            ahead.prefetch_from(row);
            if (window.is_padded()) continue;
            const char* blocks = all_blocks + *window.output * j_step;
            const auto add = [&](auto vectors, i64 q, i64 overlap = 0)
                                 __attribute__((always_inline)) {
                typename Sums::template Of<vectors()> sums;
                for (auto v = window.first_input(); v; v.next()) {
                    short_loop();
                    const char* block = blocks + window.input[*v] * i_step;
                    sums.accumulate(window.in + *v * h_step, left_step, block + q * column_step,
                                    step, depth);
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
        return {};
    }

    // To be called before work(). `array` holds the initial values.
    void place(const Array& array) { out = array; }

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
    Buffer<std::uint64_t> scratch;

    void add_by_lanes(const Sides& sides, const Share& blocks, std::uint64_t* words) const {
        const bool has_rows = out.strides[sides.column] == size && sides.right_step == size;
        with_power<full_lanes<T>>(has_rows ? out.shape[sides.column] : 1, [&](auto lanes) {
            const bool single = !padded && x.shape[1] == 1 && y.shape[1] == 1;
            if (!single) return add_blocks<lanes(), false, 0>(sides, blocks, words);
            if constexpr (!padded)
                with_vectors<lanes(), most_at_once<T, lanes()>>(
                    out.shape[sides.column], [&](auto vectors) {
                        add_blocks<lanes(), true, vectors()>(sides, blocks, words);
                    });
        });
    }

    template <int lanes, bool single, int all_vectors>
    __attribute__((noinline)) void add_blocks(const Sides& sides, const Share& blocks,
                                              std::uint64_t* words) const {
        const i64 x_step = x.strides[1], oBlocks = out.shape[1], rows = x.shape[0] * y.shape[1];
        const bool has_all = blocks.last - blocks.first == out.shape[0] * oBlocks;
        const bool swaps = sides.row == 3;
        const Block<lanes, all_vectors> block(out, sides, alpha);
        Window<single, padded> window(x, y, indices, 0, words);
        Ahead ahead(out, size, indices, window.inputs, window.outputs, rows);
        for (i64 row = 0; row < rows; ++row, window.next()) {
            ahead.prefetch_from(row);
            if (window.is_padded()) continue;
            const i64 j = *window.output;
            for (auto v = window.first_input(); v; v.next()) {
                short_loop();
                const i64 i = window.input[*v], number = i * oBlocks + j;
                if (!has_all && (number < blocks.first || number >= blocks.last)) continue;
                char *to = out.data + i * out.strides[0] + j * out.strides[1];
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
