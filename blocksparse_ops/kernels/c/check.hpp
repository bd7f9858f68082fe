// What is wrong with the arguments, as a plain record, and the block indices counted from the
// start.
#pragma once

#include "vector.hpp"

#include <algorithm>

namespace blocksparse {

// The numbers of signature.py, which makes the messages.
enum FaultKind : i64 {
    no_fault, shape_fault, signed_index, unsigned_index, overflow_fault, memory_fault
};

struct Fault {
    i64 kind = no_fault;
    i64 which = 0;   // pair of sizes, or argument
    i64 first = 0;   // the two sizes, or where the index stands
    i64 second = 0;
    i64 value = 0;   // the 64 bits of the index
    i64 size = 0;    // number of blocks

    explicit operator bool() const { return kind != no_fault; }
};

// Two positions in the list of all arguments' sizes that must be equal.
struct SizePair {
    int one;
    int other;
};

inline Fault check_sizes(const Array* arguments, int count, const SizePair* equal_sizes,
                         int pair_count) {
    i64 sizes[24], *next = sizes;  // of six arguments at the most
    for (int a = 0; a < count; ++a)
        next = std::copy_n(arguments[a].shape, arguments[a].ndim, next);
    for (int k = 0; k < pair_count; ++k) {
        const i64 one = sizes[equal_sizes[k].one], other = sizes[equal_sizes[k].other];
        if (one != other) return {shape_fault, k, one, other, 0, 0};
    }
    return {};
}

inline Fault check_triples(i64 batch, i64 inputs, i64 outputs) {
    // A zero anywhere makes the product zero, however large the others.
    if (batch == 0 || inputs == 0 || outputs == 0) return {};
    constexpr i64 most_rows = 0xffffffff;  // of an index, as signature.py has it
    i64 triples;
    if (batch > most_rows / std::max(inputs, outputs) ||
        __builtin_mul_overflow(batch * inputs, outputs, &triples))
        return {overflow_fault, 0, 0, 0, 0, 0};
    return {};
}

template <class Index>
Fault first_out_of_range(const Array& index, i64 argument, i64 blocks) {
    constexpr bool is_signed = Index(-1) < Index(0);
    for (i64 n = 0; n < index.shape[0]; ++n)
        for (i64 place = 0; place < index.shape[1]; ++place) {
            const i64 block = static_cast<i64>(load<Index>(
                index.data + n * index.strides[0] + place * index.strides[1]));
            if (index.padding.is(block)) continue;
            if (block >= blocks || block < (is_signed ? -blocks : 0))
                return {is_signed ? signed_index : unsigned_index, argument, n, place, block,
                        blocks};
        }
    return {};
}

// Writes the blocks that some values name, or no_block. Returns whether all are in range, or are
// padding.
//
// No value is an exception until all have been seen: so the compiler checks vectors of them at
// once. For it, all conditions are masks of 64 bits.
template <class Index>
bool count_from_start(const Index* __restrict values, i64 step, i64 count, i64 blocks,
                      const Padding& padding, i64* __restrict from_start) {
    using Bits = std::uint64_t;
    const i64 padding_value = padding.value, padding_mask = padding.is_given ? no_block : 0;
    Bits wrong = 0;
    for (i64 k = 0; k < count; ++k) {
        // An unsigned value of 2**63 or more turns negative here, and is out of range.
        i64 block = static_cast<i64>(values[k * step]);
        const i64 is_padding = block == padding_value ? padding_mask : 0;
        if constexpr (Index(-1) < Index(0)) block += block < 0 ? blocks : 0;
        wrong |= static_cast<Bits>(block) >= static_cast<Bits>(blocks) ? ~Bits(is_padding) : 0;
        from_start[k] = block | is_padding;
    }
    return !wrong;
}

template <class Index>
Fault check_index_as(const Array& index, i64 argument, i64 blocks, i64* from_start) {
    constexpr i64 size = sizeof(Index);
    // Windows of one place are one row, as are rows one after the other.
    const bool is_column = index.shape[1] == 1 && index.strides[0] % size == 0;
    const i64 step = index.strides[is_column ? 0 : 1] / size;
    const bool is_contiguous = step == 1 && index.strides[0] == index.shape[1] * size;
    const bool is_one_row = is_column || is_contiguous;
    const i64 rows = is_one_row ? 1 : index.shape[0];
    const i64 length = is_one_row ? index.shape[0] * index.shape[1] : index.shape[1];
    const auto count = [&](const Index* row, i64 step) __attribute__((always_inline)) {
        return count_from_start(row, step, length, blocks, index.padding, from_start);
    };
    bool all_in_range = true;
    for (i64 n = 0; n < rows; ++n, from_start += length) {
        const Index* row = reinterpret_cast<const Index*>(index.data + n * index.strides[0]);
        all_in_range &= step == 1 ? count(row, 1) : count(row, step);
    }
    return all_in_range ? Fault{} : first_out_of_range<Index>(index, argument, blocks);
}

// The blocks that an index names, counted from the start, example after example, or no_block.
class BlockNumbers {
   public:
    i64 size() const { return length; }
    bool is_padded = false;  // whether some may be no_block
    i64 operator[](i64 at) const { return first[at]; }
    const i64* begin() const { return first; }
    const i64* end() const { return first + length; }

    // What to fill.
    i64* allocate(i64 size) {
        own = Buffer<i64>(size);
        first = own.begin(), length = size;
        return own.begin();
    }

    // Values that stay where they are for as long as this is used.
    void borrow(const i64* values, i64 size) { first = values, length = size; }

   private:
    const i64* first = nullptr;
    i64 length = 0;
    Buffer<i64> own;
};

// Where the indices stand among the arguments of either op.
constexpr int input_index = 3, output_index = 4;

inline Fault check_index(const Array& index, i64 argument, i64 blocks, BlockNumbers& numbers) {
    const i64 size = index.shape[0] * index.shape[1];
    numbers.is_padded = index.padding.is_given;
    // Of a constant two numbers are enough to know that all are in range.
    if (index.known.values && index.known.least >= 0 && index.known.greatest < blocks) {
        numbers.borrow(index.known.values, size);
        return {};
    }
    i64* out = numbers.allocate(size);
    switch (index.integer) {
        case Integer::i8: return check_index_as<std::int8_t>(index, argument, blocks, out);
        case Integer::i16: return check_index_as<std::int16_t>(index, argument, blocks, out);
        case Integer::i32: return check_index_as<std::int32_t>(index, argument, blocks, out);
        case Integer::u8: return check_index_as<std::uint8_t>(index, argument, blocks, out);
        case Integer::u16: return check_index_as<std::uint16_t>(index, argument, blocks, out);
        case Integer::u32: return check_index_as<std::uint32_t>(index, argument, blocks, out);
        case Integer::u64: return check_index_as<std::uint64_t>(index, argument, blocks, out);
        default: return check_index_as<std::int64_t>(index, argument, blocks, out);
    }
}

struct Indices {
    BlockNumbers input, output;

    bool are_padded() const { return input.is_padded || output.is_padded; }
};

// Checks all that can be wrong with a call of either op.
inline Fault check(const Array* arguments, int count, const SizePair* equal_sizes,
                   int pair_count, i64 batch, i64 inputs, i64 outputs, i64 iBlocks,
                   i64 oBlocks, Indices& indices) {
    if (Fault fault = check_sizes(arguments, count, equal_sizes, pair_count)) return fault;
    if (Fault fault = check_triples(batch, inputs, outputs)) return fault;
    if (Fault fault = check_index(arguments[input_index], input_index, iBlocks, indices.input))
        return fault;
    return check_index(arguments[output_index], output_index, oBlocks, indices.output);
}

}  // namespace blocksparse
