"""The C code of the ops: a call of a kernel in an extension module that all ops share."""

import inspect
import sys
from functools import cache
from hashlib import sha256

from pytensor.graph.basic import Apply

from blocksparse_ops.kernels import thresholds
from blocksparse_ops.kernels.c.extension import DIRECT, PADDED, SCALARS, SORTED
from blocksparse_ops.kernels.thresholds import DIRECT_ELEMENTS, DIRECT_THICKNESS

# PyTensor asks for debugging information and -O3, which a call takes longer for than for all else.
COMPILE_ARGS = ("-g0", "-O1")

CALL = "bool (*)(PyArrayObject* const*, PyArrayObject**, bool, void* const*, const npy_int64*)"


@cache
def version() -> tuple[str, ...]:
    """Of the code here; the extension is found by its own sources."""
    sources = [inspect.getsource(module) for module in (sys.modules[__name__], thresholds)]
    return (sha256("".join(sources).encode()).hexdigest(),)


def declare(pointer: str) -> str:
    """C code, of a struct, that declares a pointer to a function of the extension."""
    return f"void* {pointer} = nullptr;"


def declare_kernels(name: str) -> str:
    """C code, of a struct, that declares what `call` keeps: the kernels on both paths, and what
    they know of indices that are constants, as ConstantIndex of numpy.hpp has it."""
    constants = f"""
    struct {{
        PyArrayObject* copy = nullptr;
        npy_int64 least = 0, greatest = 0;
        bool is_padded = false;
    }} constants_{name}[2];
    """
    return declare(f"{DIRECT}_{name}") + declare(f"{SORTED}_{name}") + constants


def release_constants(name: str) -> str:
    """C code that frees what `call` keeps."""
    return f"for (auto& constant : constants_{name}) Py_CLEAR(constant.copy);"


def load(pointer: str, module: str, function: str, openmp: bool, fail: str) -> str:
    """C code that looks a function of the extension up, which is built if it is not there.

    `module` is a C expression.
    """
    return f"""
    {{
        PyObject* extension = PyImport_ImportModule("blocksparse_ops.kernels.c.extension");
        PyObject* capsule = !extension ? nullptr : PyObject_CallMethod(
            extension, "function", "ssi", {module}, "{function}", {int(openmp)});
        Py_XDECREF(extension);
        {pointer} = capsule ? PyCapsule_GetPointer(capsule, nullptr) : nullptr;
        Py_XDECREF(capsule);
        if (!{pointer}) {{
            {fail}
        }}
    }}
    """


def call(node: Apply, name: str, inputs: list[str], output: str, fail: str) -> str:
    """C code that chooses the path of a call, and calls its kernel.

    A kernel is loaded, and built if it is not there, when a call first takes its path.

    Raises
    ------
    NotImplementedError
        If the kernels are not written for this dtype: PyTensor then runs `perform`.
    """
    op, dtype = node.op, dtype_of(node)
    blocks = inputs[op.signature.blocks]
    direct = DIRECT if op.padding_idx is None else PADDED
    module = f'is_direct ? "{direct}_{dtype}" : "{SORTED}_{dtype}"'
    return f"""
    {{
        const npy_intp rows = PyArray_DIM({blocks}, 2), columns = PyArray_DIM({blocks}, 3);
        const bool is_direct = rows * columns <= {DIRECT_ELEMENTS} ||
                               (rows < columns ? rows : columns) <= {DIRECT_THICKNESS};
        void*& loaded = is_direct ? {DIRECT}_{name} : {SORTED}_{name};
        if (!loaded) {load("loaded", module, op.signature.op, op.openmp, fail)}
        {call_loaded(node, name, inputs, f"&{output}", fail)}
    }}
    """


def call_gradient(node: Apply, name: str, inputs: list[str], outputs: list[str], fail: str) -> str:
    """C code that calls the kernel for the blocks in use and their values.

    Raises
    ------
    NotImplementedError
        As `call` does.
    """
    op, (inputBlock, outputBlock, values) = node.op, outputs
    module = f'"{SORTED}_{dtype_of(node)}"'
    return f"""
    {{
        void*& loaded = {SORTED}_{name};
        if (!loaded) {load("loaded", module, op.signature.op, op.openmp, fail)}
        PyArrayObject* results[] = {{{inputBlock}, {outputBlock}, {values}}};
        {call_loaded(node, name, inputs, "results", fail)}
        {inputBlock} = results[0], {outputBlock} = results[1], {values} = results[2];
    }}
    """


def dtype_of(node: Apply) -> str:
    """The dtype in which a node computes."""
    dtype = node.outputs[-1].type.dtype
    if dtype not in SCALARS:
        raise NotImplementedError(f"the C kernels compute in {' and '.join(SCALARS)}, not {dtype}")
    return dtype


def call_loaded(node: Apply, name: str, inputs: list[str], outputs: str, fail: str) -> str:
    """C code that calls the kernel at `loaded`; `outputs` is the address of the first one."""
    kept = [
        f"&constants_{name}[{which}]" if is_constant else "nullptr"
        for which, is_constant in enumerate(node.op.constant_indices(node))
    ]
    declaration, padding = "", "nullptr"
    if node.op.padding_idx is not None:
        bits = f"{node.op.padding_idx % 2**64}ULL"
        declaration = f"const npy_int64 padding_idx = static_cast<npy_int64>({bits});"
        padding = "&padding_idx"
    return f"""
    {declaration}
    PyArrayObject* const arguments[] = {{{", ".join(inputs)}}};
    void* const constants[] = {{{", ".join(kept)}}};
    const auto kernel = reinterpret_cast<{CALL}>(loaded);
    if (!kernel(arguments, {outputs}, {str(node.op.inplace).lower()}, constants, {padding})) {{
        {fail}
    }}
    """
