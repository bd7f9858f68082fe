// Between NumPy arrays and the kernels: the only file that knows Python.
#pragma once

#include <Python.h>
#include <numpy/arrayobject.h>

#include "check.hpp"
#include "choose.hpp"
#include "gradient.hpp"
#include "threads.hpp"

#include <limits>
#include <new>
#include <stdexcept>

namespace blocksparse {

inline Integer integer_of(PyArrayObject* array) {
    const bool is_signed = PyArray_ISSIGNED(array);
    if (!PyArray_ISINTEGER(array)) return Integer::none;
    switch (PyArray_ITEMSIZE(array)) {
        case 1: return is_signed ? Integer::i8 : Integer::u8;
        case 2: return is_signed ? Integer::i16 : Integer::u16;
        case 4: return is_signed ? Integer::i32 : Integer::u32;
        default: return is_signed ? Integer::i64 : Integer::u64;
    }
}

inline Array view(PyArrayObject* array) {
    Array result;
    result.data = PyArray_BYTES(array);
    result.ndim = PyArray_NDIM(array);
    for (int axis = 0; axis < result.ndim; ++axis) {
        result.shape[axis] = PyArray_DIM(array, axis);
        result.strides[axis] = PyArray_STRIDE(array, axis);
    }
    result.integer = integer_of(array);
    return result;
}

// Sets the Python error that a record stands for.
inline void raise_fault(const char* op, const Fault& fault, const Padding& padding) {
    PyObject* module = PyImport_ImportModule("blocksparse_ops.signature");
    if (!module) return;
    PyObject* result = PyObject_CallMethod(
        module, "raise_fault", "s(LLLLLL)(iL)", op, static_cast<long long>(fault.kind),
        static_cast<long long>(fault.which), static_cast<long long>(fault.first),
        static_cast<long long>(fault.second), static_cast<long long>(fault.value),
        static_cast<long long>(fault.size), int{padding.is_given},
        static_cast<long long>(padding.value));
    Py_XDECREF(result);
    Py_DECREF(module);
}

// Runs pure C++ without the GIL; an allocation that fails becomes a record.
template <class Work>
Fault without_gil(const Work& work) {
    Fault fault;
    Py_BEGIN_ALLOW_THREADS
#ifdef __cpp_exceptions
    try {
        fault = work();
    } catch (const std::bad_alloc&) {
        fault.kind = memory_fault;
    } catch (const std::length_error&) {
        fault.kind = memory_fault;
    }
#else  // PyMC switches them off: where there is no memory for the scratch space, the process ends.
    fault = work();
#endif
    Py_END_ALLOW_THREADS
    return fault;
}

// A view that repeats elements may not be written, nor may a read-only array. Without elements all
// strides are 0.
inline bool writeable(PyArrayObject* array) {
    for (int axis = 0; axis < PyArray_NDIM(array); ++axis)
        if (PyArray_DIM(array, axis) > 1 && PyArray_STRIDE(array, axis) == 0)
            return PyArray_SIZE(array) == 0 && PyArray_ISWRITEABLE(array);
    return PyArray_ISWRITEABLE(array);
}

// A view that repeats a single element.
inline bool is_one_element(PyArrayObject* array) {
    for (int axis = 0; axis < PyArray_NDIM(array); ++axis)
        if (PyArray_DIM(array, axis) > 1 && PyArray_STRIDE(array, axis) != 0) return false;
    return true;
}

// Makes *output an array to write the result into: o itself, the output of the last call, or a new
// one. It holds the values of `o`, unless these are not needed.
inline bool place_output(PyArrayObject* o, PyArrayObject** output, bool inplace, bool copies) {
    if (inplace && writeable(o)) {
        Py_INCREF(o);
        Py_XSETREF(*output, o);
        return true;
    }
    if (!*output || *output == o || !PyArray_IS_C_CONTIGUOUS(*output) ||
        !PyArray_ISWRITEABLE(*output) || !PyArray_SAMESHAPE(*output, o)) {
        PyObject* array = PyArray_SimpleNew(PyArray_NDIM(o), PyArray_DIMS(o), PyArray_TYPE(o));
        if (!array) return false;
        Py_XSETREF(*output, reinterpret_cast<PyArrayObject*>(array));
    }
    return !copies || PyArray_CopyInto(*output, o) == 0;
}

// What an op keeps of an index that is a constant, from one call to the next.
struct ConstantIndex {
    PyArrayObject* copy;
    i64 least, greatest;  // of what names a block
    bool is_padded;
};

// Finds what is known of the copy of an index. What is padded becomes no_block, unless some values
// are negative, which count from the end.
inline void find_bounds(ConstantIndex& constant, const Padding& padding) {
    i64* values = static_cast<i64*>(PyArray_DATA(constant.copy));
    i64* end = values + PyArray_SIZE(constant.copy);
    constant.least = std::numeric_limits<i64>::max();
    constant.greatest = std::numeric_limits<i64>::min();
    std::for_each(values, end, [&](i64 value) {
        const bool is_padding = padding.is(value);
        constant.is_padded |= is_padding;
        if (is_padding) return;
        constant.least = std::min(constant.least, value);
        constant.greatest = std::max(constant.greatest, value);
    });
    if (constant.is_padded && constant.least >= 0)
        std::replace(values, end, padding.value, no_block);
}

// Looks at a constant index the first time. It is copied, for PyTensor shares its memory with
// whoever made it. Returns false with a Python error set if that cannot be done.
inline bool know(PyArrayObject* index, ConstantIndex& constant, Array& argument) {
    if (!constant.copy) {
        PyObject* copy = PyArray_FROM_OTF(
            reinterpret_cast<PyObject*>(index), NPY_INT64,
            NPY_ARRAY_C_CONTIGUOUS | NPY_ARRAY_ENSURECOPY | NPY_ARRAY_FORCECAST);
        if (!copy) return false;
        constant.copy = reinterpret_cast<PyArrayObject*>(copy);
        find_bounds(constant, argument.padding);
    }
    // As 64 bits with a sign the largest unsigned values are others.
    if (PyArray_ISUNSIGNED(index) && constant.least < 0) return true;
    const Padding padding{constant.is_padded,
                          constant.least < 0 ? argument.padding.value : no_block};
    argument = view(constant.copy);
    argument.padding = padding;
    const i64* values = static_cast<const i64*>(PyArray_DATA(constant.copy));
    argument.known = {values, constant.least, constant.greatest};
    return true;
}

// What does not depend on a call's arguments.
struct Settings {
    const char* op;
    const SizePair* equal_sizes;
    int pair_count;
    Thresholds thresholds;
};

// Prepares a kernel for a call. `constants` has a place for each index that is a constant. Returns
// false with a Python error set if it cannot be done.
template <class Kernel>
bool prepare(Kernel& kernel, PyArrayObject* const* inputs, ConstantIndex* const* constants,
             const Padding& padding, const Settings& settings) {
    Array arguments[Kernel::arguments];
    for (int a = 0; a < Kernel::arguments; ++a) arguments[a] = view(inputs[a]);
    for (int a : {input_index, output_index}) {
        arguments[a].padding = padding;
        ConstantIndex* constant = constants[a - input_index];
        if (constant && !know(inputs[a], *constant, arguments[a])) return false;
    }
    Fault fault = without_gil([&] {
        return kernel.prepare(arguments, settings.equal_sizes, settings.pair_count,
                              settings.thresholds, most_threads());
    });
    if (fault) raise_fault(settings.op, fault, padding);
    return !fault;
}

template <class Kernel>
void work(Kernel& kernel) {
    without_gil([&] {
        on_threads(kernel.threads(), [&](int thread) { kernel.work(thread); });
        return Fault{};
    });
}

// One call of an op. Returns false with a Python error set, and nothing written, if it cannot be
// done.
template <class Kernel>
bool call(Kernel& kernel, PyArrayObject* const* inputs, PyArrayObject** output, bool inplace,
          ConstantIndex* const* constants, const Padding& padding, const Settings& settings) {
    if (!prepare(kernel, inputs, constants, padding, settings)) return false;
    // What starts from the same value everywhere need not be written first and read again.
    bool starts = false;
    if constexpr (Kernel::can_start)
        starts = PyArray_SIZE(inputs[0]) && kernel.writes_all() && is_one_element(inputs[0]);
    if (!place_output(inputs[0], output, inplace, !starts)) return false;
    if constexpr (Kernel::can_start)
        if (starts && *output != inputs[0]) kernel.start_from(PyArray_BYTES(inputs[0]));
    kernel.place(view(*output));
    work(kernel);
    return true;
}

// The same of the op whose three outputs are the blocks in use, by both numbers, and their values.
template <class T>
bool call(Gradient<T>& kernel, PyArrayObject* const* inputs, PyArrayObject** outputs, bool,
          ConstantIndex* const* constants, const Padding& padding, const Settings& settings) {
    if (!prepare(kernel, inputs, constants, padding, settings)) return false;
    npy_intp shape[] = {kernel.blocks(), PyArray_DIM(inputs[1], 2), PyArray_DIM(inputs[2], 2)};
    const auto allocate = [&](int ndim, int type) {
        return reinterpret_cast<PyArrayObject*>(PyArray_ZEROS(ndim, shape, type, 0));
    };
    PyArrayObject* const results[] = {allocate(1, NPY_INT64), allocate(1, NPY_INT64),
                                      allocate(3, PyArray_TYPE(inputs[1]))};
    const bool are_there = results[0] && results[1] && results[2];
    for (int k = 0; k < 3; ++k)
        if (are_there)
            Py_XSETREF(outputs[k], results[k]);
        else
            Py_XDECREF(results[k]);
    if (!are_there) return false;
    kernel.number_blocks(static_cast<i64*>(PyArray_DATA(results[0])),
                         static_cast<i64*>(PyArray_DATA(results[1])));
    kernel.place(view(results[2]));
    work(kernel);
    return true;
}

}  // namespace blocksparse
