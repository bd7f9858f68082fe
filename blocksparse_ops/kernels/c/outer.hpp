// o[xIdx[b, v], yIdx[b, w]] += alpha * outer(x[b, v], y[b, w])
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

    // Checks, plans and takes all the memory that work() needs. Writes nothing of the caller's.
    Fault prepare(const Array* args, const Agreement* agreements, int agreement_count,
                  const Thresholds& thresholds, int most_threads) {
        x = args[1];
        y = args[2];
        alpha = load<T>(args[5].data);
        const i64 batch = x.shape[0], inputs = x.shape[1], outputs = y.shape[1];
        const i64 iBlocks = args[0].shape[0], oBlocks = args[0].shape[1];
        Indices indices;
        if (Fault fault = check(args, arguments, agreements, agreement_count, batch, inputs,
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

    // The part of one thread. All parts may be worked on side by side.
    void work(int thread) {
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

   private:
    static constexpr i64 size = sizeof(T);

    Array x, y, out;
    T alpha;
    Plan plan;
    int workers;
    Buffer<Scratch<T>> scratch;
    Rows x_rows, y_rows;

    // So many rows of the widest panel fit into the scratch.
    static constexpr i64 chunk_rows = Scratch<T>::size / widest_panel<T>;

    // Some triples of a block: where the block and the one that comes after it lie, and the rows.
    struct Chunk {
        char *here, *next;
        i64 length;
        const char *left[chunk_rows], *right[chunk_rows];
    };

    char* block(i64 g) const {
        return out.data + plan.block[g].of[0] * out.strides[0] +
               plan.block[g].of[1] * out.strides[1];
    }

    Chunk resolve(i64 g, i64 t, i64 length) const {
        Chunk chunk;
        chunk.here = block(g);
        chunk.next = g + 1 < plan.groups ? block(g + 1) : nullptr;
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
        const i64 column = panel.first * out.strides[3];
        const auto add_tiles = [&](const auto& right) {
            for_each_tile<Panel::rows>(out.shape[2], [&](auto rows, i64 m) {
                add_tile<decltype(rows)::value>(chunk, m, m * out.strides[2] + column, panel,
                                                right);
            });
        };
        if (y.strides[2] == size) {
            const i64 first = panel.first * size;
            add_tiles([&chunk, first](i64 k) { return chunk.right[k] + first; });
        } else {
            for (i64 k = 0; k < chunk.length; ++k)
                for (i64 n = 0; n < panel.columns; ++n)
                    scratch[k * Panel::width + n] =
                        load<T>(chunk.right[k] + (panel.first + n) * y.strides[2]);
            add_tiles(Right{reinterpret_cast<const char*>(scratch), Panel::width * size});
        }
    }

    // Rows m to m + rows of a panel, which lie `offset` behind the start of the block.
    template <int rows, class Panel, class RightRow>
    void add_tile(const Chunk& chunk, i64 m, i64 offset, const Panel& panel,
                  const RightRow& right) const {
        const i64 step = x.strides[2];
        Prefetch prefetch{nullptr, 0, 0, 0};
        if (chunk.next && out.strides[3] == size)
            prefetch = {chunk.next + offset, rows, panel.columns * size, out.strides[2]};
        prefetch.spread(ceil_div(chunk.length, strip_depth));
        Tile<Panel, rows> tile(panel);
        tile.accumulate(
            chunk.length, [&](int r, i64 k) { return load<T>(chunk.left[k] + (m + r) * step); },
            right, prefetch);
        char* corner = chunk.here + offset;
        tile.add([&](int r) { return corner + r * out.strides[2]; }, out.strides[3], alpha);
    }
};

}  // namespace blocksparse
