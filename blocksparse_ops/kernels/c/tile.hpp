// The register tile: a few rows by a few vectors, summed over a depth, added to the output.
#pragma once

#include "arrays.hpp"

#include <algorithm>
#include <cstring>
#include <type_traits>

namespace blocksparse {

#if defined(__AVX512F__)
constexpr int vector_bytes = 64;
#elif defined(__AVX__)
constexpr int vector_bytes = 32;
#else
constexpr int vector_bytes = 16;
#endif

template <class T>
struct Vector {
    static constexpr int lanes = vector_bytes / static_cast<int>(sizeof(T));
    typedef T type __attribute__((vector_size(vector_bytes)));
};

constexpr int tile_rows = 4;
constexpr int tile_vectors = 4;

// Sums are taken over at most this many products before they are added to the output, so that
// the panel has a fixed size. The chunks do not depend on strides, hence neither do the bits.
constexpr i64 chunk_depth = 256;

template <class T>
constexpr i64 panel_size = chunk_depth * tile_vectors * Vector<T>::lanes;

// sum[m][.] = sum over k < depth of left(m, k) * right(k)[.]
template <class T, int rows, int vectors>
struct Tile {
    using V = typename Vector<T>::type;
    V sum[rows][vectors] = {};

    template <class Left, class Right>
    void accumulate(i64 depth, const Left& left, const Right& right) {
        for (i64 k = 0; k < depth; ++k) {
            const char* row = right(k);
            V loaded[vectors];
            for (int v = 0; v < vectors; ++v)
                std::memcpy(&loaded[v], row + v * vector_bytes, vector_bytes);
            for (int m = 0; m < rows; ++m)
                for (int v = 0; v < vectors; ++v) sum[m][v] += left(m, k) * loaded[v];
        }
    }

    // to(m)[n] += scale * sum[m][n] for n < columns, n counted in strides.
    template <class To>
    void add(const To& to, i64 stride, i64 columns, T scale) const {
        for (int m = 0; m < rows; ++m) {
            T row[vectors * Vector<T>::lanes];
            std::memcpy(row, sum[m], sizeof row);
            char* out = to(m);
            for (i64 n = 0; n < columns; ++n, out += stride) {
                T& value = *reinterpret_cast<T*>(out);
                value += scale * row[n];
            }
        }
    }
};

template <class T>
T load(const char* address) {
    return *reinterpret_cast<const T*>(address);
}

// Copies rows of `columns` elements into a panel whose rows are `width` long, with zeros behind.
template <class T, class Row>
void pack(T* panel, i64 depth, const Row& row, i64 stride, i64 columns, i64 width) {
    for (i64 k = 0; k < depth; ++k, panel += width) {
        const char* from = row(k);
        for (i64 n = 0; n < columns; ++n, from += stride) panel[n] = load<T>(from);
        std::fill(panel + columns, panel + width, T(0));
    }
}

template <int n>
using constant = std::integral_constant<int, n>;

// Calls use(vectors, first column, columns) for every panel of columns, `vectors` a constant.
template <class T, class Use>
void for_each_panel(i64 columns, const Use& use) {
    constexpr i64 lanes = Vector<T>::lanes;
    for (i64 n = 0; n < columns; n += tile_vectors * lanes) {
        const i64 here = std::min(columns - n, tile_vectors * lanes);
        if (here <= lanes)
            use(constant<1>{}, n, here);
        else if (here <= 2 * lanes)
            use(constant<2>{}, n, here);
        else
            use(constant<tile_vectors>{}, n, here);
    }
}

// Calls use(rows, first row) for every tile, `rows` a constant.
template <class Use>
void for_each_tile(i64 rows, const Use& use) {
    i64 m = 0;
    for (; m + tile_rows <= rows; m += tile_rows) use(constant<tile_rows>{}, m);
    switch (rows - m) {
        case 1: use(constant<1>{}, m); break;
        case 2: use(constant<2>{}, m); break;
        case 3: use(constant<3>{}, m); break;
    }
}

// Calls use(first, length) for every chunk of the depth.
template <class Use>
void for_each_chunk(i64 depth, const Use& use) {
    for (i64 k = 0; k < depth; k += chunk_depth) use(k, std::min(depth - k, chunk_depth));
}

// Calls use(right) with right(k) the address of a full row of `width` elements: where the rows
// lie if their elements are adjacent and fill the width, else in the panel.
template <class T, class Row, class Use>
void with_panel(T* panel, i64 depth, const Row& row, i64 stride, i64 columns, i64 width,
                const Use& use) {
    if (stride == static_cast<i64>(sizeof(T)) && columns == width) {
        use(row);
    } else {
        pack(panel, depth, row, stride, columns, width);
        use([=](i64 k) { return reinterpret_cast<const char*>(panel + k * width); });
    }
}

}  // namespace blocksparse
