// o[xIdx[n, v], yIdx[n, w]] += alpha * outer(x[n, v], y[n, w])
#pragma once

#include "check.hpp"
#include "choose.hpp"
#include "pack.hpp"
#include "plan.hpp"
#include "split.hpp"
#include "tile.hpp"

namespace blocksparse {

template <class T>
class Outer {
   public:
    static constexpr int arguments = 6;  // o, x, y, xIdx, yIdx, alpha
    static constexpr bool can_start = false;

    // Checks, plans and allocates all that work() needs. Writes nothing of the caller's.
    Fault prepare(const Array* args, const SizePair* equal_sizes, int pair_count,
                  const Thresholds& thresholds, int most_threads) {
        x = args[1];
        y = args[2];
        alpha = load<T>(args[5].data);
        const i64 batch = x.shape[0], inputs = x.shape[1], outputs = y.shape[1];
        const i64 iBlocks = args[0].shape[0], oBlocks = args[0].shape[1];
        Indices indices;
        if (Fault fault = check(args, arguments, equal_sizes, pair_count, batch, inputs,
                                outputs, iBlocks, oBlocks, indices))
            return fault;
        workers = threads_for(batch * inputs * outputs, x.shape[2] * y.shape[2], thresholds,
                              most_threads);
        plan = make_plan({indices.input, inputs, iBlocks}, {indices.output, outputs, oBlocks},
                         batch);
        scratch = Buffer<Scratch<T>>(workers);
        x_rows.reserve(batch * inputs);
        y_rows.reserve(batch * outputs);
        x_rows.locate(x);
        y_rows.locate(y);
        return {};
    }

    // To be called before work(). `array` holds the initial values.
    void place(const Array& array) { out = array; }

    int threads() const { return workers; }

    // The work of one thread; all may run at once.
    void work(int thread) {
        if (alpha == 0) return;
        const Panels<T> panels(out.shape[3]);
        const Part part(plan.groups ? plan.start[plan.groups] : 0, panels.size(), thread, workers);
        for (i64 g = 0; g < plan.groups; ++g) {
            const i64 start = plan.start[g], rows = plan.start[g + 1] - start;
            const Share mine = part.panels(start, rows);
            if (mine.first == mine.last) continue;
            for_each_chunk(rows, chunk_rows, [&](i64 first, i64 length) {
                const Chunk chunk = resolve(g, start + first, length);
                panels.for_each(mine.first, mine.last, [&](const auto& panel) {
                    add_panel(chunk, panel, scratch[thread].elements);
                });
            });
        }
    }

   protected:
    Plan plan;

   private:
    static constexpr i64 size = sizeof(T);

    Array x, y, out;
    T alpha;
    int workers;
    Buffer<Scratch<T>> scratch;
    Rows x_rows, y_rows;

    static constexpr i64 rows_ahead = 32;

    // Rows of the widest panel that fit into the scratch.
    static constexpr i64 chunk_rows = Scratch<T>::size / widest_panel<T>;

    // Some triples of a block: the depth over which a tile sums.
    struct Chunk {
        char *block, *next_block;
        i64 length;
        const char *left[chunk_rows], *right[chunk_rows];
    };

    char* block(i64 g) const {
        return out.data + plan.block[g].of[0] * out.strides[0] +
               plan.block[g].of[1] * out.strides[1];
    }

    Chunk resolve(i64 g, i64 t, i64 length) const {
        Chunk chunk;
        chunk.block = block(g);
        chunk.next_block = g + 1 < plan.groups ? block(g + 1) : nullptr;
        chunk.length = length;
        for (i64 k = 0; k < length; ++k) {
            chunk.left[k] = x_rows[plan.triple[t + k].row[0]];
            chunk.right[k] = y_rows[plan.triple[t + k].row[1]];
        }
        return chunk;
    }

    template <class Panel>
    __attribute__((noinline)) void add_panel(const Chunk& chunk, const Panel& panel,
                                             T* scratch) const {
        pack(chunk, panel, scratch);
        for_each_tile<Panel::rows>(out.shape[2], [&](auto rows, i64 m) {
            add_tile<decltype(rows)::value>(chunk, m, panel, scratch);
        });
    }

    // Packs the panel's columns of the rows of y, which lie anywhere, and which every tile reads.
    template <class Panel>
    void pack(const Chunk& chunk, const Panel& panel, T* scratch) const {
        for (i64 k = 0; k < chunk.length; ++k, scratch += Panel::width) {
            const char* row = chunk.right[k] + panel.first * y.strides[2];
            if (y.strides[2] == size)
                panel.copy(row, reinterpret_cast<char*>(scratch));
            else
                for (i64 q = 0; q < panel.columns; ++q)
                    scratch[q] = load<T>(row + q * y.strides[2]);
        }
    }

    // Rows m to m + rows of a panel.
    template <int rows, class Panel>
    void add_tile(const Chunk& chunk, i64 m, const Panel& panel, const T* packed) const {
        const i64 step = x.strides[2];
        Prefetch prefetch = prefetch_behind(chunk, m, rows, panel);
        prefetch.spread(ceil_div(chunk.length, strip_depth));
        Tile<Panel, rows> tile(panel);
        tile.accumulate(
            chunk.length, [&](int r, i64 k) { return load<T>(chunk.left[k] + (m + r) * step); },
            Right{reinterpret_cast<const char*>(packed), Panel::width * size}, prefetch);
        char* corner = chunk.block + m * out.strides[2] + panel.first * out.strides[3];
        tile.add([&](int r) { return corner + r * out.strides[2]; }, out.strides[3], alpha);
    }

    // Rows far enough behind row m to arrive in time, near enough not to be evicted before use.
    template <class Panel>
    Prefetch prefetch_behind(const Chunk& chunk, i64 m, i64 rows, const Panel& panel) const {
        m += std::min<i64>(rows_ahead, out.shape[2]);
        const char* block = m < out.shape[2] ? chunk.block : chunk.next_block;
        if (!block || out.strides[3] != size) return {nullptr, 0, 0, 0};
        const i64 row = m < out.shape[2] ? m : m - out.shape[2];
        return {block + row * out.strides[2] + panel.first * size, rows, panel.columns * size,
                out.strides[2]};
    }
};

}  // namespace blocksparse
