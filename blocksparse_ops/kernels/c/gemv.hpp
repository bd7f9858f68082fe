// o[n, w] += sum_v h[n, v] @ W[inputIdx[n, v], outputIdx[n, w]]
#pragma once

#include "by_block.hpp"
#include "choose.hpp"
#include "product.hpp"
#include "shared.hpp"

namespace blocksparse {

template <class T>
class Gemv {
   public:
    static constexpr int arguments = 5;  // o, W, h, inputIdx, outputIdx
    static constexpr bool can_start = false;

    // Checks, plans and allocates all that work() needs. Writes nothing of the caller's.
    Fault prepare(const Array* args, const SizePair* equal_sizes, int pair_count,
                  const Thresholds& thresholds, int most_threads) {
        if (Fault fault = product.prepare(args, arguments, equal_sizes, pair_count))
            return fault;
        shared = pattern_is_shared(product.indices, product.batch);
        workers = threads_for(product.batch * product.inputs * product.outputs,
                              product.depth * product.columns, thresholds, most_threads);
        scratch = Buffer<Scratch<T>>(workers);
        if (!shared) by_block.prepare(product, workers);
        return {};
    }

    // To be called before work(). `out` holds the initial values.
    void place(const Array& out) {
        product.out = out;
        if (!shared) by_block.place(product);
    }

    int threads() const { return workers; }

    // The work of one thread; all may run at once.
    void work(int thread) {
        T* packed = scratch[thread].elements;
        if (shared)
            Shared<T>::work(product, thread, workers, packed);
        else
            by_block.work(product, thread, workers, packed);
    }

   private:
    Product<T> product;
    bool shared;
    ByBlock<T> by_block;
    int workers;
    Buffer<Scratch<T>> scratch;
};

}  // namespace blocksparse
