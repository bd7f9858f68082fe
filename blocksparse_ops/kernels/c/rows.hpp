// The rows of the windows one after the other, and which loops a product of small blocks needs.
#pragma once

#include "places.hpp"
#include "sums.hpp"

namespace blocksparse {

// Blocks that lie evenly spaced, and their numbers along the line: of windows of one place each, of
// which none is padded, one table is read instead of both indices.
class Line {
   public:
    // Allocates what set() needs, for blocks that lie in an array of this one's shape.
    void prepare(const Array& blocks, const Indices& indices, i64 inputs, i64 outputs) {
        is_possible = inputs == 1 && outputs == 1 && !indices.are_padded();
        if (is_possible && blocks.shape[0] != 1 && blocks.shape[1] != 1)
            numbers = Buffer<i64>(indices.input.size());
    }

    void set(const Array& blocks, const Indices& indices) {
        if (!is_possible) return;
        const i64 *i = indices.input.begin(), *j = indices.output.begin();
        const i64 iBlocks = blocks.shape[0], oBlocks = blocks.shape[1];
        const i64 i_step = blocks.strides[0], j_step = blocks.strides[1];
        if (oBlocks == 1) return lay(i, i_step);
        if (iBlocks == 1) return lay(j, j_step);
        if (i_step == oBlocks * j_step) return lay(number(i, oBlocks, j), j_step);
        if (j_step == iBlocks * i_step) return lay(number(j, iBlocks, i), i_step);
    }

    explicit operator bool() const { return first; }
    const i64* begin() const { return first; }
    i64 step = 0;

   private:
    bool is_possible = false;
    Buffer<i64> numbers;
    const i64* first = nullptr;

    void lay(const i64* table, i64 step) { first = table, this->step = step; }

    const i64* number(const i64* row, i64 length, const i64* place) {
        for (i64& number : numbers) number = *row++ * length + *place++;
        return numbers.begin();
    }
};

// Which loops stand: those that take longer than a small product are left out where they can be.
enum class Loops {
    all,
    padded,  // all, and places of either window may be padded
    line     // none over the places of the windows, and blocks lie on a line
};

template <Loops loops>
using constant_loops = std::integral_constant<Loops, loops>;

// Calls use(loops, vectors), both constants: `vectors` are all that a row of a block has, if each
// is full, or 0 if there is a loop over them.
template <bool padded, int lanes, int most_vectors, class Use>
void with_loops(const Line& line, i64 columns, const Use& use) {
    if constexpr (padded)
        use(constant_loops<Loops::padded>{}, constant<0>{});
    else if (line)
        with_vectors<lanes, most_vectors>(
            columns, [&](auto vectors) { use(constant_loops<Loops::line>{}, vectors); });
    else
        use(constant_loops<Loops::all>{}, constant<0>{});
}

// The rows of both windows, one row of the output after the other, and their triples' blocks.
template <Loops loops>
class Window {
   public:
    Window(const Array& in, const Array& out, const Array& blocks, const Indices& indices,
           const Line& line, i64 row, std::uint64_t* words)
        : inputs(on_line ? 1 : in.shape[1]), outputs(on_line ? 1 : out.shape[1]),
          places(inputs, words), examples_left(in.shape[0] - row / outputs), blocks(blocks.data),
          oBlocks(blocks.shape[1]), i_step(on_line ? line.step : blocks.strides[0]),
          j_step(blocks.strides[1]) {
        const i64 n = row / outputs;
        w = row - n * outputs;
        in_step = in.strides[0];
        out_step = out.strides[1], next_out = out.strides[0] - (outputs - 1) * out_step;
        this->in = in.data + n * in_step;
        this->out = out.data + n * out.strides[0] + w * out_step;
        input = (on_line ? line.begin() : indices.input.begin()) + n * inputs;
        output = indices.output.begin() + row;
        if constexpr (padded) places.enter(input);
    }

    const i64 inputs, outputs;
    char *in, *out;  // place 0 of the input window, place w of the output window

    // Whether nothing is added at this row, or from it.
    bool is_padded() const { return padded && (*output == no_block || places.is_empty); }

    // The first place of the input window. Not a function of all of them: what it captured would be
    // read anew for each.
    auto first_input() const {
        if constexpr (padded)
            return places.first();
        else
            return AnyPlace(inputs);
    }

    // The block of a place of the input window, and its number among all.
    char* block(i64 v) const {
        return blocks + input[v] * i_step + (on_line ? 0 : *output * j_step);
    }
    i64 number(i64 v) const { return on_line ? input[v] : input[v] * oBlocks + *output; }

    void next() {
        ++output;
        if (++w < outputs) {
            out += out_step;
            return;
        }
        w = 0, input += inputs, in += in_step, out += next_out;
        if constexpr (padded)
            if (--examples_left) places.enter(input);
    }

   private:
    static constexpr bool padded = loops == Loops::padded, on_line = loops == Loops::line;
    const i64 *input, *output;  // blocks of both windows; the former those on the line
    Places places;
    i64 examples_left, w, in_step, out_step, next_out;
    char* const blocks;
    const i64 oBlocks, i_step, j_step;
};

}  // namespace blocksparse
