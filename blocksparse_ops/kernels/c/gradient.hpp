// The blocks that an outer product on zeros adds to, and what it adds to each.
#pragma once

#include "outer.hpp"

namespace blocksparse {

// An outer product into an array that holds the blocks in use alone, one after the other.
template <class T>
class Gradient : public Outer<T> {
   public:
    i64 blocks() const { return this->plan.groups; }

    // Tells which blocks are in use, by their numbers on both sides. To be called once, before
    // work().
    void number_blocks(i64* input, i64* output) {
        for (i64 g = 0; g < blocks(); ++g) {
            Plan::Block& block = this->plan.block[g];
            input[g] = block.of[0], output[g] = block.of[1];
            block = {{g, 0}};
        }
    }

    // To be called before work(). `values` are blocks of zeros.
    void place(const Array& values) {
        Array blocks = values;
        blocks.ndim = 4;
        for (int axis = 3; axis > 1; --axis) {
            blocks.shape[axis] = values.shape[axis - 1];
            blocks.strides[axis] = values.strides[axis - 1];
        }
        blocks.shape[1] = 1, blocks.strides[1] = 0;
        Outer<T>::place(blocks);
    }
};

}  // namespace blocksparse
