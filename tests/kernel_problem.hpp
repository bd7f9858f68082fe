// Random problems for the kernels, and what their outputs should be.
#pragma once

#include "direct.hpp"
#include "gemv.hpp"
#include "gradient.hpp"

#include <cmath>
#include <map>
#include <numeric>
#include <random>
#include <string>
#include <vector>

using namespace blocksparse;

class Random {
   public:
    explicit Random(std::uint64_t seed) : engine(seed) {}

    i64 below(i64 n) { return static_cast<i64>(engine() % static_cast<std::uint64_t>(n)); }
    bool once_in(i64 n) { return below(n) == 0; }
    i64 one_of(const std::vector<i64>& choices) { return choices[below(choices.size())]; }
    double normal() { return std::normal_distribution<double>()(engine); }
    void shuffle(std::vector<int>& order) { std::shuffle(order.begin(), order.end(), engine); }

   private:
    std::mt19937_64 engine;
};

// Sizes by the letters of signature.py.
using Sizes = std::map<char, i64>;

inline Sizes draw_sizes(Random& random) {
    // Around the widths of vectors and tiles, and the depth of a chunk.
    static const std::vector<i64> columns{0,  1,  1,  1,  2,  3,  4,  5,  7,  8,  9,   15,
                                          16, 17, 31, 32, 33, 47, 63, 64, 65, 100, 520, 2100};
    static const std::vector<i64> depths{0,  1,  2,  3,  4,  5,  7,  8,   9,   15,  16,  17,  31,
                                         32, 33, 47, 63, 64, 65, 100, 127, 128, 129, 255, 256, 257};
    static const std::vector<i64> blocks{1, 1, 2, 2, 3, 4, 5, 6, 6, 70, 130};
    static const std::vector<i64> batches{0, 1, 2, 3, 4, 5, 6, 7, 7, 40, 40};
    // Weights that no cache holds, of which a kernel prefetches the blocks of rows to come.
    if (random.once_in(200)) {
        static const std::vector<i64> windows{0, 1, 1, 2, 3};
        Sizes s{{'n', 40}, {'v', random.one_of(windows)}, {'w', random.one_of(windows)},
                {'p', 16}, {'q', 16}, {'i', 130}, {'j', 70}};
        if (random.once_in(2)) {
            s['p'] = 1, s['q'] = 520, s['j'] = 33;
            if (random.once_in(2)) std::swap(s['p'], s['q']);
        }
        return s;
    }
    for (;;) {
        // And, of input windows, around the bits of a word.
        const i64 inputs = random.once_in(20) ? random.one_of({63, 64, 65, 130}) : random.below(6);
        Sizes s{{'n', random.one_of(batches)}, {'v', inputs}, {'w', random.below(6)},
                {'p', random.one_of(depths)}, {'q', random.one_of(columns)}};
        if (random.once_in(4)) s['v'] = s['w'] = 1;
        // There need be no block where there is no index.
        s['i'] = s['n'] * s['v'] == 0 && random.once_in(4) ? 0 : random.one_of(blocks);
        s['j'] = s['n'] * s['w'] == 0 && random.once_in(4) ? 0 : random.one_of(blocks);
        const i64 block = s['p'] * s['q'];
        if (s['n'] * s['v'] * s['w'] * block <= 400'000 && s['i'] * s['j'] * block <= 200'000)
            return s;
    }
}

// An array and its memory, which is exactly as large as it needs.
struct Tensor {
    Array array;
    i64 bytes = 0;
    std::unique_ptr<char[]> memory;

    std::string contents() const { return {memory.get(), static_cast<std::size_t>(bytes)}; }

    char* address(const i64* at) const {
        char* address = array.data;
        for (int axis = 0; axis < array.ndim; ++axis) address += at[axis] * array.strides[axis];
        return address;
    }

    // Calls use(address, where) for every element, in the order of the axes.
    template <class Use>
    void for_each(const Use& use) const {
        const auto length = [&](int axis) { return axis < array.ndim ? array.shape[axis] : 1; };
        i64 at[4];
        for (at[0] = 0; at[0] < length(0); ++at[0])
            for (at[1] = 0; at[1] < length(1); ++at[1])
                for (at[2] = 0; at[2] < length(2); ++at[2])
                    for (at[3] = 0; at[3] < length(3); ++at[3]) use(address(at), at);
    }
};

// Axes in any order and direction, gaps and, unless it is written to, elements that are repeated.
inline Tensor draw_layout(Random& random, const std::vector<i64>& shape, i64 size,
                          bool is_written) {
    Tensor tensor;
    Array& array = tensor.array;
    array.ndim = static_cast<int>(shape.size());
    std::copy(shape.begin(), shape.end(), array.shape);
    std::vector<int> order(shape.size());  // from the axis of the largest stride on
    std::iota(order.begin(), order.end(), 0);
    if (random.once_in(6)) random.shuffle(order);
    else if (shape.size() == 4 && random.once_in(3)) order = {1, 0, 3, 2};
    const bool gapped = random.once_in(4), reversed = random.once_in(4);
    const bool repeats = !is_written && random.once_in(4);
    i64 step = size, first = 0;
    tensor.bytes = size;
    for (; !order.empty(); order.pop_back()) {
        const i64 length = shape[order.back()];
        if (gapped) step += random.below(3) * size;
        i64& stride = array.strides[order.back()] = reversed && random.once_in(2) ? -step : step;
        if (repeats && random.once_in(2)) stride = 0;
        step *= std::max<i64>(length, 1);
        const i64 reach = std::max<i64>(length - 1, 0) * stride;
        first -= std::min<i64>(reach, 0);
        tensor.bytes += std::abs(reach);
        // A stride along which there is no step may be any.
        if (length < 2 && random.once_in(4)) stride = (random.below(9) - 4) * size;
    }
    if (std::count(shape.begin(), shape.end(), 0)) tensor.bytes = first = 0;
    tensor.memory.reset(new char[tensor.bytes]);
    array.data = tensor.memory.get() + first;
    return tensor;
}

// An index dtype, on a little-endian machine.
struct IndexType {
    Integer integer;
    int bytes;
    bool is_signed;

    static IndexType draw(Random& random) {
        constexpr IndexType all[] = {
            {Integer::i8, 1, true},   {Integer::i16, 2, true},  {Integer::i32, 4, true},
            {Integer::i64, 8, true},  {Integer::u8, 1, false},  {Integer::u16, 2, false},
            {Integer::u32, 4, false}, {Integer::u64, 8, false}};
        return all[random.below(8)];
    }

    void store(char* address, i64 value) const { std::memcpy(address, &value, bytes); }

    // Unsigned values of 2**63 or more turn negative.
    i64 load(const char* address) const {
        std::uint64_t bits = 0;
        std::memcpy(&bits, address, bytes);
        const int unused = 64 - 8 * bytes;
        bits <<= unused;
        return is_signed ? static_cast<i64>(bits) >> unused : static_cast<i64>(bits >> unused);
    }

    bool holds(i64 value) const { return load(reinterpret_cast<const char*>(&value)) == value; }
    bool in_range(i64 value, i64 n) const { return value < n && value >= (is_signed ? -n : 0); }
};

template <class Kernel>
struct Op;

template <class T>
struct GemvOp {
    using Scalar = T;
    static constexpr bool is_gemv = true;
    static constexpr const char* axes[] = {"nwq", "ijpq", "nvp", "nv", "nw"};
};

template <class T>
struct OuterOp {
    using Scalar = T;
    static constexpr bool is_gemv = false;
    static constexpr const char* axes[] = {"ijpq", "nvp", "nwq", "nv", "nw", ""};
};

template <class T>
constexpr bool is_float = sizeof(T) == 4;

template <class T>
struct Op<Gemv<T>> : GemvOp<T> {
    static constexpr bool takes_padding = true;
    static constexpr const char* name = is_float<T> ? "gemv<float>" : "gemv<double>";
};

template <class T, bool padded>
struct Op<DirectGemv<T, padded>> : GemvOp<T> {
    static constexpr bool takes_padding = padded;
    static constexpr const char* name = is_float<T> ? "direct gemv<float>" : "direct gemv<double>";
};

template <class T>
struct Op<Outer<T>> : OuterOp<T> {
    static constexpr bool takes_padding = true;
    static constexpr const char* name = is_float<T> ? "outer<float>" : "outer<double>";
};

template <class T, bool padded>
struct Op<DirectOuter<T, padded>> : OuterOp<T> {
    static constexpr bool takes_padding = padded;
    static constexpr const char* name =
        is_float<T> ? "direct outer<float>" : "direct outer<double>";
};

// What an element of the output should be, and for the bound of its error the sum of magnitudes.
struct Sum {
    long double value, magnitude;
    i64 terms;

    void add(long double term) {
        value += term;
        magnitude += std::fabs(term);
        ++terms;
    }
};

// An axis of an argument.
struct Dimension {
    char letter;
    int argument, axis;
};

template <class Kernel>
struct Problem {
    using T = typename Op<Kernel>::Scalar;
    static constexpr int count = Kernel::arguments;

    Sizes sizes;
    bool is_exact;              // small integers, whose sums have no error
    Padding padding;
    std::vector<Dimension> dimensions;  // of all arguments, one after the other
    std::vector<SizePair> equal_sizes;
    IndexType types[count];
    Tensor tensors[count], &out = tensors[0];
    std::string contents[count];  // of the tensors, before any call
    Array arguments[count];

    explicit Problem(Random& random) : sizes(draw_sizes(random)), is_exact(random.once_in(2)) {
        for (int a = 0; a < count; ++a) {
            std::vector<i64> shape;
            for (const char* letter = Op<Kernel>::axes[a]; *letter; ++letter) {
                add_dimension({*letter, a, static_cast<int>(shape.size())});
                shape.push_back(sizes[*letter]);
            }
            types[a] = IndexType::draw(random);
            const i64 size = is_index(a) ? types[a].bytes : static_cast<i64>(sizeof(T));
            tensors[a] = draw_layout(random, shape, size, a == 0);
            if (is_index(a)) tensors[a].array.integer = types[a].integer;
        }
        draw_padding(random);
        const bool pattern_is_shared = random.once_in(3);
        draw_index(random, input_index, sizes['i'], pattern_is_shared, input_blocks);
        draw_index(random, output_index, sizes['j'], pattern_is_shared, output_blocks);
        draw_values(random);
        for (int a = 0; a < count; ++a) {
            contents[a] = tensors[a].contents();
            arguments[a] = tensors[a].array;
        }
        if (random.once_in(4)) know(input_index, input_blocks);
        if (random.once_in(4)) know(output_index, output_blocks);
        // Where the op is not in place, the initial values are copied after prepare().
        if (random.once_in(2)) arguments[0].data = nullptr;
    }

    std::string words() const {
        std::string text = Op<Kernel>::name;
        for (const auto& [letter, size] : sizes)
            text += std::string{' ', letter, '='} + std::to_string(size);
        return text;
    }

    // A plain loop: one sum for each element of the output, in the order of its axes.
    std::vector<Sum> sums() const {
        std::vector<Sum> sums;
        out.for_each([&](char* address, const i64*) {
            const long double value = load<T>(contents[0].data() + (address - out.memory.get()));
            sums.push_back({value, std::fabs(value), 0});
        });
        const i64 outputs = sizes.at('w'), oBlocks = sizes.at('j');
        const i64 depth = sizes.at('p'), columns = sizes.at('q');
        for_each_triple([&](i64 n, i64 v, i64 w, i64 i, i64 j) {
            for (i64 p = 0; p < depth; ++p)
                for (i64 q = 0; q < columns; ++q)
                    if constexpr (Op<Kernel>::is_gemv)
                        sums[(n * outputs + w) * columns + q].add(element(1, i, j, p, q) *
                                                                  element(2, n, v, p));
                    else
                        sums[((i * oBlocks + j) * depth + p) * columns + q].add(
                            element(5) * element(1, n, v, p) * element(2, n, w, q));
        });
        return sums;
    }

   private:
    // Counted from the start, row after row, and as long as they need be.
    std::vector<i64> input_blocks, output_blocks;

    // Has an index be a constant, of which a call gets a copy.
    void know(int argument, std::vector<i64>& blocks) {
        using Limits = std::numeric_limits<i64>;
        Array& index = arguments[argument];
        index.data = reinterpret_cast<char*>(blocks.data());
        index.strides[0] = index.shape[1] * 8, index.strides[1] = 8;
        index.integer = Integer::i64;
        index.known = {blocks.data(), Limits::max(), Limits::min()};
        for (i64 block : blocks) {
            if (block == no_block) continue;
            index.known.least = std::min(index.known.least, block);
            index.known.greatest = std::max(index.known.greatest, block);
        }
        const bool is_padded = std::count(blocks.begin(), blocks.end(), no_block);
        index.padding = {is_padded, no_block};
    }

    static bool is_index(int argument) {
        return argument == input_index || argument == output_index;
    }

    void add_dimension(const Dimension& dimension) {
        const auto first = std::find_if(dimensions.begin(), dimensions.end(), [&](const Dimension& other) {
            return other.letter == dimension.letter;
        });
        if (first != dimensions.end())
            equal_sizes.push_back({static_cast<int>(first - dimensions.begin()),
                                  static_cast<int>(dimensions.size())});
        dimensions.push_back(dimension);
    }

    // What both indices may hold.
    void draw_padding(Random& random) {
        const i64 value = random.one_of({-1, -1, 0, 1, 100, sizes['i'], sizes['j']});
        const bool is_held = types[input_index].holds(value) && types[output_index].holds(value);
        padding = {Op<Kernel>::takes_padding && random.once_in(2) && is_held, value};
        for (int a : {input_index, output_index}) tensors[a].array.padding = padding;
    }

    void draw_index(Random& random, int argument, i64 count, bool rows_are_equal,
                    std::vector<i64>& blocks) {
        const Tensor& tensor = tensors[argument];
        const IndexType& type = types[argument];
        const i64 once_padded_in = random.one_of({1, 2, 2, 2, 5, 1000});
        tensor.for_each([&](char* address, const i64* at) {
            if (rows_are_equal && at[0] > 0) {
                std::memcpy(address, address - at[0] * tensor.array.strides[0], type.bytes);
                return;
            }
            if (padding.is_given && random.once_in(once_padded_in))
                return type.store(address, padding.value);
            const i64 block = random.below(count), from_end = block - count;
            const bool may_be_negative = type.is_signed && type.holds(from_end);
            const bool is_negative = may_be_negative && random.once_in(2);
            type.store(address, is_negative || !type.holds(block) ? from_end : block);
        });
        blocks.reserve(tensor.array.shape[0] * tensor.array.shape[1]);
        tensor.for_each([&](char* address, const i64*) {
            const i64 value = type.load(address);
            blocks.push_back(padding.is(value) ? no_block : value < 0 ? value + count : value);
        });
    }

    // Calls use(n, v, w, i, j) for every triple that is not padded.
    template <class Use>
    void for_each_triple(const Use& use) const {
        const i64 inputs = sizes.at('v'), outputs = sizes.at('w');
        for (i64 n = 0; n < sizes.at('n'); ++n)
            for (i64 v = 0; v < inputs; ++v)
                for (i64 w = 0; w < outputs; ++w) {
                    const i64 i = input_blocks[n * inputs + v];
                    const i64 j = output_blocks[n * outputs + w];
                    if (i != no_block && j != no_block) use(n, v, w, i, j);
                }
    }

    // Whether an element of an argument stands at a place that is padded.
    bool is_padded(int argument, const i64* at) const {
        if (tensors[argument].array.ndim != 3) return false;
        const bool is_input = Op<Kernel>::axes[argument][1] == 'v';
        const std::vector<i64>& blocks = is_input ? input_blocks : output_blocks;
        return blocks[at[0] * sizes.at(is_input ? 'v' : 'w') + at[1]] == no_block;
    }

    // Blocks that no triple uses, and what is padded, keep what new memory holds.
    void draw_values(Random& random) {
        const i64 oBlocks = sizes['j'];
        std::vector<bool> used(sizes['i'] * oBlocks);
        for_each_triple([&](i64, i64, i64, i64 i, i64 j) { used[i * oBlocks + j] = true; });
        for (int a = 0; a < count; ++a) {
            if (is_index(a)) continue;
            const bool has_blocks = tensors[a].array.ndim == 4;
            tensors[a].for_each([&](char* address, const i64* at) {
                if (has_blocks && !used[at[0] * oBlocks + at[1]]) return;
                if (is_padded(a, at)) return;
                const double value = is_exact ? double(random.below(9) - 4) : random.normal();
                *reinterpret_cast<T*>(address) = static_cast<T>(value);
            });
        }
    }

    long double element(int argument, i64 k0 = 0, i64 k1 = 0, i64 k2 = 0, i64 k3 = 0) const {
        const i64 at[] = {k0, k1, k2, k3};
        return load<T>(tensors[argument].address(at));
    }
};
