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

    // A place that is not padded; they come in order.
    class Place {
       public:
        Place(i64 inputs, const std::uint64_t* word)
            : inputs(inputs), word(word), left(inputs ? *word : 0) {
            skip_words();
        }

        explicit operator bool() const { return left; }
        i64 operator*() const { return first + __builtin_ctzll(left); }

        void next() {
            left &= left - 1;
            skip_words();
        }

       private:
        const i64 inputs;
        const std::uint64_t* word;
        i64 first = 0;
        std::uint64_t left;

        void skip_words() {
            while (!left && (first += bits) < inputs) left = *++word;
        }
    };

    Place first() const { return {inputs, word}; }

    bool is_empty = true;  // whether the whole window is padded

   private:
    const i64 inputs;
    std::uint64_t* const word;
};

// A place of a window in which none is padded.
class AnyPlace {
   public:
    explicit AnyPlace(i64 inputs) : inputs(inputs) {}

    explicit operator bool() const { return v < inputs; }
    i64 operator*() const { return v; }
    void next() { ++v; }

   private:
    const i64 inputs;
    i64 v = 0;
};

}  // namespace blocksparse
