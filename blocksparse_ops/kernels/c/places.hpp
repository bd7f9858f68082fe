// The places of an input window that are not padded.
#pragma once

#include "check.hpp"

namespace blocksparse {

// Of one example at a time: a bit a place. A branch for each place would be mispredicted.
class Places {
   public:
    static constexpr i64 bits = 64;

    // The words that a window takes.
    static i64 words(i64 inputs) { return (inputs + bits - 1) / bits; }

    Places(i64 inputs, std::uint64_t* words) : inputs(inputs), word(words) {}

    // Looks at the blocks of an example's window.
    void enter(const i64* block) {
        std::uint64_t any = 0;
        for (i64 first = 0; first < inputs; first += bits) {
            std::uint64_t named = 0;
            const i64 count = std::min(inputs - first, bits);
            for (i64 k = 0; k < count; ++k) {
                short_loop();
                named |= std::uint64_t{block[first + k] != no_block} << k;
            }
            word[first / bits] = named;
            any |= named;
        }
        is_empty = !any;
    }

    // Calls use(v) for all places that are not padded, in order.
    template <class Use>
    __attribute__((always_inline)) void for_each(const Use& use) const {
        for (i64 first = 0; first < inputs; first += bits)
            for (std::uint64_t left = word[first / bits]; left; left &= left - 1)
                use(first + __builtin_ctzll(left));
    }

    bool is_empty = true;  // whether the whole window is padded

   private:
    const i64 inputs;
    std::uint64_t* const word;
};

}  // namespace blocksparse
