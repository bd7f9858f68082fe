// Vectors as GCC and Clang know them, as wide as the machine's registers.
#pragma once

#include "arrays.hpp"

#include <cstring>

namespace blocksparse {

#if defined(__AVX512F__)
constexpr int vector_bytes = 64;
#elif defined(__AVX__)
constexpr int vector_bytes = 32;
#else
constexpr int vector_bytes = 16;
#endif

template <class T>
constexpr int full_lanes = vector_bytes / static_cast<int>(sizeof(T));

template <class T, int lanes>
struct VectorOf {
    typedef T type __attribute__((vector_size(lanes * sizeof(T))));
};

// A vector of one lane goes through memory.
template <class T>
struct VectorOf<T, 1> {
    typedef T type;
};

template <class T, int lanes>
using Vector = typename VectorOf<T, lanes>::type;

template <class T>
T load(const char* address) {
    return *reinterpret_cast<const T*>(address);
}

template <class V>
V load_vector(const char* address) {
    V vector;
    std::memcpy(&vector, address, sizeof vector);
    return vector;
}

template <class V>
void store_vector(char* address, const V& vector) {
    std::memcpy(address, &vector, sizeof vector);
}

// Keeps the compiler from writing the loop that it stands in with vectors: windows are mostly too
// short for them.
__attribute__((always_inline)) inline void short_loop() { asm(""); }

}  // namespace blocksparse
