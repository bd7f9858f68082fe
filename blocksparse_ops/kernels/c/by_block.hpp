// The product block by block: each is read once for all the rows that use it.
#pragma once

#include "pack.hpp"
#include "plan.hpp"
#include "product.hpp"
#include "split.hpp"

namespace blocksparse {

template <class T>
class ByBlock {
   public:
    void prepare(const Product<T>& p, int threads) {
        const Side input{p.indices.input, p.inputs, p.W.shape[0]};
        const Side output{p.indices.output, p.outputs, p.W.shape[1]};
        // Blocks in the order in which they lie are read faster than in any other.
        output_first = std::abs(p.W.strides[0]) < std::abs(p.W.strides[1]);
        plan = output_first ? make_plan(output, input, p.batch) : make_plan(input, output, p.batch);
        h_rows.reserve(p.batch * p.inputs);
        h_rows.locate(p.h);
        out_rows.reserve(p.batch * p.outputs);
        panels = panel_count<T>(p.columns);
        if (threads > 1) count_triples(p.W.shape[1], threads);
    }

    void place(const Product<T>& p) { out_rows.locate(p.out); }

    void work(const Product<T>& p, int thread, int threads, T* scratch) const {
        const Part part = part_of(p, thread, threads);
        for (Group here = next_group(p, 0, part), next; here.block; here = next) {
            next = next_group(p, here.number + 1, part);
            if (p.columns_lie_together())
                multiply_by_panel(p, here, next, part, scratch);
            else
                multiply_by_chunk(p, here, next, part, scratch);
        }
    }

   private:
    Plan plan;
    bool output_first;
    Rows h_rows, out_rows;
    i64 panels;
    Buffer<i64> triples_before;  // each output block
    bool too_few_panels;         // to give each thread one

    i64 input_block(i64 g) const { return plan.block[g].of[output_first ? 1 : 0]; }
    i64 output_block(i64 g) const { return plan.block[g].of[output_first ? 0 : 1]; }
    i64 input_row(i64 t) const { return plan.triple[t].row[output_first ? 1 : 0]; }
    i64 output_row(i64 t) const { return plan.triple[t].row[output_first ? 0 : 1]; }

    void count_triples(i64 oBlocks, int threads) {
        triples_before = Buffer<i64>(oBlocks + 1);
        std::fill(triples_before.begin(), triples_before.end(), 0);
        for (i64 g = 0; g < plan.groups; ++g)
            triples_before[output_block(g) + 1] += plan.start[g + 1] - plan.start[g];
        i64 used = 0;
        for (i64 j = 0; j < oBlocks; ++j) {
            used += triples_before[j + 1] > 0;
            triples_before[j + 1] += triples_before[j];
        }
        too_few_panels = used * panels < threads;
    }

    // What of the plan a thread works on: all, some examples, or some panels of output blocks.
    struct Part {
        enum { all, examples, panels } kind;
        Share share;
    };

    Part part_of(const Product<T>& p, int thread, int threads) const {
        if (threads == 1) return {Part::all, Share(0, 0, 1)};
        if (too_few_panels) return {Part::examples, Share(p.batch, thread, threads)};
        return {Part::panels, Share(triples_before[p.W.shape[1]] * panels, thread, threads)};
    }

    // A panel weighs as much as its block has triples, and belongs to whose share it starts in.
    bool has(const Part& part, i64 g, i64 panel) const {
        if (part.kind != Part::panels) return true;
        const i64 j = output_block(g), before = triples_before[j];
        return part.share.has(before * panels + panel * (triples_before[j + 1] - before));
    }

    bool has_any_panel(const Part& part, i64 g) const {
        for (i64 panel = 0; panel < panels; ++panel)
            if (has(part, g, panel)) return true;
        return false;
    }

    // The triples of a block that are to be worked on.
    struct Group {
        const char* block = nullptr;
        i64 number = 0, first = 0, last = 0;

        i64 rows() const { return last - first; }
    };

    // The first group from number g on of which a part has something.
    Group next_group(const Product<T>& p, i64 g, const Part& part) const {
        for (; g < plan.groups; ++g) {
            Group group{p.block(input_block(g), output_block(g)), g, plan.start[g],
                        plan.start[g + 1]};
            if (part.kind == Part::examples) {
                group.first = first_triple_from(p, g, part.share.first);
                group.last = first_triple_from(p, g, part.share.last);
            }
            if (group.rows() > 0 && has_any_panel(part, g)) return group;
        }
        return {};
    }

    // The triples of a group stand in the order of their examples.
    i64 first_triple_from(const Product<T>& p, i64 g, i64 example) const {
        const auto is_before = [&](const Plan::Triple& triple, i64 bound) {
            return triple.row[output_first ? 0 : 1] < bound;
        };
        const Plan::Triple* triples = plan.triple.begin();
        return std::lower_bound(triples + plan.start[g], triples + plan.start[g + 1],
                                example * p.outputs, is_before) - triples;
    }

    // All columns of a chunk before the next one: as a block lies whose rows lie together.
    void multiply_by_chunk(const Product<T>& p, const Group& here, const Group& next,
                           const Part& part, T* scratch) const {
        const i64 chunk = chunk_depth<T>(p.columns);
        for_each_chunk(p.depth, chunk, [&](i64 k0, i64 length) {
            Prefetch prefetch = k0 + length < p.depth ? p.rows_of(here.block, k0 + length, chunk)
                                                      : p.rows_of(next.block, 0, chunk);
            prefetch.spread(panels * ceil_div(here.rows(), tile_rows) *
                            ceil_div(length, strip_depth));
            for_each_panel<T>(p.columns, [&](const auto& panel) {
                if (has(part, here.number, panel.number))
                    multiply(p, here, k0, length, panel, scratch, prefetch);
            });
        });
    }

    // All the depth of a panel before the next one: as a block lies whose columns lie together.
    void multiply_by_panel(const Product<T>& p, const Group& here, const Group& next,
                           const Part& part, T* scratch) const {
        for_each_panel<T>(p.columns, [&](const auto& panel) {
            if (!has(part, here.number, panel.number)) return;
            const i64 end = panel.first + panel.columns;
            Prefetch prefetch = end < p.columns ? p.columns_of(here.block, end, panel.columns)
                                                : p.columns_of(next.block, 0, widest_panel<T>);
            prefetch.spread(ceil_div(here.rows(), panel.rows) * ceil_div(p.depth, strip_depth) +
                            panel.vectors * ceil_div(p.depth, panel.lanes));
            for_each_chunk(p.depth, chunk_depth<T>(p.columns), [&](i64 k0, i64 length) {
                multiply(p, here, k0, length, panel, scratch, prefetch);
            });
        });
    }

    template <class Panel>
    __attribute__((noinline)) void multiply(const Product<T>& p, const Group& group, i64 k0,
                                            i64 length, const Panel& panel, T* scratch,
                                            Prefetch& prefetch) const {
        Factor factor{p.right(group.block, k0, length, panel, scratch, prefetch), prefetch};
        const i64 step = p.h.strides[2];
        for_each_tile<Panel::rows>(group.rows(), [&](auto rows, i64 r) {
            TileRows<decltype(rows)::value> tile;
            for (int m = 0; m < rows; ++m) {
                const i64 t = group.first + r + m;
                tile.left[m] = h_rows[input_row(t)] + k0 * step;
                tile.to[m] = out_rows[output_row(t)] + panel.first * p.out.strides[2];
            }
            add_products(tile, step, 0, &factor, 1, length, p.out.strides[2], panel);
        });
        prefetch = factor.prefetch;
    }
};

}  // namespace blocksparse
