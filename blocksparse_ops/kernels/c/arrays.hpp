// The arrays that kernels work on: a pointer, sizes, and strides in bytes. No Python here.
#pragma once

#include <cstdint>
#include <vector>

namespace blocksparse {

using i64 = std::int64_t;

enum class Integer { none, i8, i16, i32, i64, u8, u16, u32, u64 };

struct Array {
    char* data = nullptr;
    int ndim = 0;
    i64 shape[4] = {};
    i64 strides[4] = {};
    Integer integer = Integer::none;  // what an index array holds
};

// The addresses of the rows of a (batch, window, size) array: row example * window + position.
class Rows {
   public:
    void reserve(i64 rows) { offsets.resize(static_cast<std::size_t>(rows)); }

    void locate(const Array& array) {
        data = array.data;
        i64* offset = offsets.data();
        for (i64 example = 0; example < array.shape[0]; ++example)
            for (i64 position = 0; position < array.shape[1]; ++position)
                *offset++ = example * array.strides[0] + position * array.strides[1];
    }

    char* operator[](i64 row) const { return data + offsets[row]; }

   private:
    char* data = nullptr;
    std::vector<i64> offsets;
};

}  // namespace blocksparse
