// The arrays that kernels work on: a pointer, sizes, and strides in bytes. No Python here.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

namespace blocksparse {

using i64 = std::int64_t;

enum class Integer { none, i8, i16, i32, i64, u8, u16, u32, u64 };

// The index that names no block, if there is one: its 64 bits.
struct Padding {
    bool is_given = false;
    i64 value = 0;

    bool is(i64 index) const { return is_given && index == value; }
};

// Stands for it where blocks are counted from the start.
constexpr i64 no_block = -1;

// The values of an index that is a constant, blocks or no_block, and which of the blocks are the
// first and the last.
struct KnownIndex {
    const i64* values = nullptr;
    i64 least = 0, greatest = 0;
};

struct Array {
    char* data = nullptr;
    int ndim = 0;
    i64 shape[4] = {};
    i64 strides[4] = {};
    Integer integer = Integer::none;  // what an index array holds
    Padding padding;
    KnownIndex known;
};

// Uninitialised memory: every element is written before it is read.
template <class T>
class Buffer {
   public:
    Buffer() = default;
    explicit Buffer(i64 size) : elements(new T[static_cast<std::size_t>(size)]), length(size) {}

    i64 size() const { return length; }
    T& operator[](i64 at) { return elements[at]; }
    const T& operator[](i64 at) const { return elements[at]; }
    T* begin() { return elements.get(); }
    T* end() { return elements.get() + length; }
    const T* begin() const { return elements.get(); }
    const T* end() const { return elements.get() + length; }

   private:
    std::unique_ptr<T[]> elements;
    i64 length = 0;
};

// The addresses of the rows of a (batch, window, size) array; row n * window + place is number
// `place` of example n's window.
class Rows {
   public:
    void reserve(i64 rows) { offsets = Buffer<i64>(rows); }

    void locate(const Array& array) {
        data = array.data;
        i64* offset = offsets.begin();
        for (i64 n = 0; n < array.shape[0]; ++n)
            for (i64 place = 0; place < array.shape[1]; ++place)
                *offset++ = n * array.strides[0] + place * array.strides[1];
    }

    char* operator[](i64 row) const { return data + offsets[row]; }

   private:
    char* data = nullptr;
    Buffer<i64> offsets;
};

}  // namespace blocksparse
