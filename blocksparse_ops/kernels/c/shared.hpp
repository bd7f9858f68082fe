// gemv if all examples use the same blocks: a whole window is summed in registers.
#pragma once

#include "pack.hpp"
#include "product.hpp"
#include "split.hpp"

namespace blocksparse {

template <class T>
class Shared {
   public:
    static void work(const Product<T>& p, int thread, int threads, T* scratch) {
        const bool by_example = p.batch >= p.outputs;
        const Share share(by_example ? p.batch : p.outputs, thread, threads);
        const Share all_examples(p.batch, 0, 1), all_outputs(p.outputs, 0, 1);
        const Share& examples = by_example ? share : all_examples;
        const Share& outputs = by_example ? all_outputs : share;
        if (examples.first == examples.last) return;
        const Panels<T> panels(p.columns);
        for_each_slice(p, [&](const Slice& slice) {
            for (i64 w = outputs.first; w < outputs.last; ++w)
                panels.for_each(0, panels.size(), [&](const auto& panel) {
                    multiply(p, examples, w, outputs.last, slice, panel, scratch);
                });
        });
    }

   private:
    static const char* block(const Product<T>& p, i64 v, i64 w) {
        return p.block(p.indices.input[v], p.indices.output[w]);
    }

    // Some places of the input window, or part of one's depth: at most a chunk in all.
    struct Slice {
        i64 first, last, k0, length;
    };

    template <class Use>
    static void for_each_slice(const Product<T>& p, const Use& use) {
        const i64 chunk = chunk_depth<T>(p.columns);
        const i64 places = std::max<i64>(1, chunk / std::max<i64>(1, p.depth));
        for (i64 v = 0; v < p.inputs; v += places)
            for_each_chunk(p.depth, chunk, [&](i64 k0, i64 length) {
                use(Slice{v, std::min(v + places, p.inputs), k0, length});
            });
    }

    // The blocks of a slice and of place w of the output window; place w + 1's are prefetched.
    template <class Panel>
    __attribute__((noinline)) static void multiply(const Product<T>& p, const Share& examples,
                                                   i64 w, i64 end, const Slice& slice,
                                                   const Panel& panel, T* scratch) {
        Factor factors[most_depth];
        const i64 rows = examples.last - examples.first;
        const i64 calls = ceil_div(rows, Panel::rows) * ceil_div(slice.length, strip_depth);
        for (i64 v = slice.first; v < slice.last; ++v, scratch += slice.length * Panel::width) {
            const char* next = w + 1 < end ? block(p, v, w + 1) : nullptr;
            Prefetch prefetch = p.prefetch(next, slice.k0, slice.length, panel.first,
                                           panel.first + panel.columns);
            prefetch.spread(calls);
            Factor& factor = factors[v - slice.first];
            factor.right =
                p.right(block(p, v, w), slice.k0, slice.length, panel, scratch, prefetch);
            factor.prefetch = prefetch;
        }
        const char* left = p.h.data + slice.first * p.h.strides[1] + slice.k0 * p.h.strides[2];
        char* to = p.out.data + w * p.out.strides[1] + panel.first * p.out.strides[2];
        for_each_chunk(rows, Addresses::most, [&](i64 first, i64 count) {
            Addresses at;
            for (i64 m = 0; m < count; ++m) {
                at.left[m] = left + (examples.first + first + m) * p.h.strides[0];
                at.to[m] = to + (examples.first + first + m) * p.out.strides[0];
            }
            for_each_tile<Panel::rows>(count, [&](auto rows_here, i64 m) {
                add_products<decltype(rows_here)::value>(
                    at.left + m, p.h.strides[2], p.h.strides[1], factors, slice.last - slice.first,
                    slice.length, at.to + m, p.out.strides[2], panel);
            });
        });
    }
};

}  // namespace blocksparse
