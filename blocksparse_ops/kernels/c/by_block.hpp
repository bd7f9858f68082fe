// gemv block by block: each block in use is read once, for all rows that it multiplies.
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
        // Blocks are read fastest in the order of memory. But threads contend for the cache lines
        // that rows of the output share (false sharing), least with output blocks as the major key.
        // Both orders give the same bits: the sort is stable, so a row's sum takes its blocks in
        // the same order.
        output_is_major = threads > 1 || std::abs(p.W.strides[0]) < std::abs(p.W.strides[1]);
        plan = output_is_major ? make_plan(output, input, p.batch)
                               : make_plan(input, output, p.batch);
        h_rows.reserve(p.batch * p.inputs);
        h_rows.locate(p.h);
        out_rows.reserve(p.batch * p.outputs);
        if (threads > 1) count_triples(p, threads);
    }

    void place(const Product<T>& p) { out_rows.locate(p.out); }

    void work(const Product<T>& p, int thread, int threads, T* scratch) const {
        const Portion mine = portion(p, thread, threads);
        for (Group here = next_group(p, 0, mine), next; here.block; here = next) {
            next = next_group(p, here.number + 1, mine);
            if (p.is_column_major())
                multiply_by_panel(p, here, next, scratch);
            else
                multiply_by_chunk(p, here, next, scratch);
        }
    }

   private:
    Plan plan;
    bool output_is_major;
    Rows h_rows, out_rows;
    Buffer<i64> triples_before;  // each output block
    bool too_few_panels;         // for each thread to have one

    i64 input_block(i64 g) const { return plan.block[g].of[output_is_major ? 1 : 0]; }
    i64 output_block(i64 g) const { return plan.block[g].of[output_is_major ? 0 : 1]; }
    i64 input_row(i64 t) const { return plan.triple[t].row[output_is_major ? 1 : 0]; }
    i64 output_row(i64 t) const { return plan.triple[t].row[output_is_major ? 0 : 1]; }

    void count_triples(const Product<T>& p, int threads) {
        const i64 oBlocks = p.W.shape[1];
        triples_before = Buffer<i64>(oBlocks + 1);
        std::fill(triples_before.begin(), triples_before.end(), 0);
        for (i64 g = 0; g < plan.groups; ++g)
            triples_before[output_block(g) + 1] += plan.start[g + 1] - plan.start[g];
        i64 used = 0;
        for (i64 j = 0; j < oBlocks; ++j) {
            used += triples_before[j + 1] > 0;
            triples_before[j + 1] += triples_before[j];
        }
        too_few_panels = used * Panels<T>(p.columns).size() < threads;
    }

    // What a thread works on: all, some panels of output blocks, or some examples.
    struct Portion {
        enum { all, panels, examples } of;
        Part part;
        Share share;
    };

    Portion portion(const Product<T>& p, int thread, int threads) const {
        if (threads == 1) return {Portion::all, {0, 0, 0, 1}, {0, 0}};
        if (too_few_panels) return {Portion::examples, {0, 0, 0, 1}, {p.batch, thread, threads}};
        const i64 triples = triples_before[p.W.shape[1]];
        return {Portion::panels, {triples, Panels<T>(p.columns).size(), thread, threads}, {0, 0}};
    }

    // The triples and the panels of a block that a thread works on; none without a block.
    struct Group {
        const char* block = nullptr;
        i64 number = 0, first = 0, last = 0, first_panel = 0, end_panel = 0;

        i64 rows() const { return last - first; }
    };

    // The first group from number g on that a portion has some of.
    Group next_group(const Product<T>& p, i64 g, const Portion& portion) const {
        for (; g < plan.groups; ++g) {
            Share rows(plan.start[g], plan.start[g + 1]), panels(0, Panels<T>(p.columns).size());
            if (portion.of == Portion::panels) {
                const i64 j = output_block(g), before = triples_before[j];
                panels = portion.part.panels(before, triples_before[j + 1] - before);
            } else if (portion.of == Portion::examples) {
                rows = {first_triple_from(p, g, portion.share.first),
                        first_triple_from(p, g, portion.share.last)};
            }
            if (rows.first < rows.last && panels.first < panels.last)
                return {p.block(input_block(g), output_block(g)), g, rows.first, rows.last,
                        panels.first, panels.last};
        }
        return {};
    }

    // A group's triples are in the order of their examples: the sort is stable.
    i64 first_triple_from(const Product<T>& p, i64 g, i64 n) const {
        const auto is_before = [&](const Plan::Triple& triple, i64 bound) {
            return triple.row[output_is_major ? 0 : 1] < bound;
        };
        const Plan::Triple* triples = plan.triple.begin();
        return std::lower_bound(triples + plan.start[g], triples + plan.start[g + 1],
                                n * p.outputs, is_before) - triples;
    }

    // In the order of a row-major block in memory: all panels of a chunk before the next chunk.
    void multiply_by_chunk(const Product<T>& p, const Group& here, const Group& next,
                           T* scratch) const {
        const Panels<T> panels(p.columns);
        const i64 chunk = chunk_depth<T>(p.columns);
        const auto prefetch_of = [&](const Group& group, i64 k0) {
            return p.prefetch(group.block, k0, chunk, panels.start(group.first_panel),
                             panels.start(group.end_panel));
        };
        for_each_chunk(p.depth, chunk, [&](i64 k0, i64 length) {
            Prefetch prefetch = k0 + length < p.depth ? prefetch_of(here, k0 + length)
                                                      : prefetch_of(next, 0);
            prefetch.spread((here.end_panel - here.first_panel) * ceil_div(here.rows(), tile_rows) *
                            ceil_div(length, strip_depth));
            panels.for_each(here.first_panel, here.end_panel, [&](const auto& panel) {
                multiply(p, here, k0, length, panel, scratch, prefetch);
            });
        });
    }

    // In the order of a column-major block in memory: all chunks of a panel before the next panel.
    void multiply_by_panel(const Product<T>& p, const Group& here, const Group& next,
                           T* scratch) const {
        const Panels<T> panels(p.columns);
        const auto prefetch_of = [&](const Group& group, i64 number) {
            return p.prefetch(group.block, 0, p.depth, panels.start(number),
                              panels.start(number + 1));
        };
        panels.for_each(here.first_panel, here.end_panel, [&](const auto& panel) {
            Prefetch prefetch = panel.number + 1 < here.end_panel
                                    ? prefetch_of(here, panel.number + 1)
                                    : prefetch_of(next, next.first_panel);
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
        const i64 left_offset = k0 * p.h.strides[2], to_offset = panel.first * p.out.strides[2];
        for_each_chunk(group.rows(), Addresses::most, [&](i64 first, i64 rows) {
            Addresses at;
            for (i64 m = 0; m < rows; ++m) {
                const i64 t = group.first + first + m;
                at.left[m] = h_rows[input_row(t)] + left_offset;
                at.to[m] = out_rows[output_row(t)] + to_offset;
                __builtin_prefetch(at.left[m]);
            }
            for_each_tile<Panel::rows>(rows, [&](auto count, i64 m) {
                add_products<decltype(count)::value>(at.left + m, p.h.strides[2], 0, &factor, 1,
                                                     length, at.to + m, p.out.strides[2], panel);
            });
        });
        prefetch = factor.prefetch;
    }
};

}  // namespace blocksparse
