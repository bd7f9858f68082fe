"""Hands the C++ files of this folder to the ops' C code."""

import json
import re
from functools import cache
from hashlib import sha256
from importlib.resources import files

from blocksparse_ops.kernels.thresholds import PRODUCTS_OF_A_THREAD
from blocksparse_ops.signature import Signature

# Each file after those that it includes.
HEADERS = (
    "arrays",
    "check",
    "choose",
    "split",
    "threads",
    "plan",
    "vector",
    "panel",
    "tile",
    "pack",
    "product",
    "by_block",
    "shared",
    "gemv",
    "outer",
    "numpy",
)

SCALARS = {"float32": "npy_float32", "float64": "npy_float64"}

COMPILE_ARGS = ("-std=c++17",)


@cache
def support_code() -> str:
    """All headers as one text, their own includes of each other taken out."""
    folder = files(__package__)
    texts = [folder.joinpath(f"{name}.hpp").read_text("utf-8") for name in HEADERS]
    return re.sub(r'#pragma once\n|#include "\w+\.hpp"\n', "", "\n".join(texts))


@cache
def version() -> tuple[str, ...]:
    """What the compiled code depends on besides the graph."""
    return (sha256(support_code().encode()).hexdigest(), *COMPILE_ARGS, str(PRODUCTS_OF_A_THREAD))


def call(
    kernel: str,
    signature: Signature,
    dtype: str,
    inputs: list[str],
    output: str,
    inplace: bool,
    fail: str,
) -> str:
    """C code that calls one kernel class.

    Raises
    ------
    NotImplementedError
        If the kernels are not written for this dtype: PyTensor then runs `perform`.
    """
    if dtype not in SCALARS:
        raise NotImplementedError(f"the C kernels compute in float32 and float64, not {dtype}")
    equal_sizes = ", ".join(f"{{{one}, {other}}}" for one, other in signature.equal_sizes)
    return f"""
    {{
        PyArrayObject* const arguments[] = {{{", ".join(inputs)}}};
        const blocksparse::SizePair equal_sizes[] = {{{equal_sizes}}};
        if (!blocksparse::call<blocksparse::{kernel}<{SCALARS[dtype]}>>(
                "{signature.op}", arguments, &{output}, {str(inplace).lower()}, equal_sizes,
                {len(signature.equal_sizes)}, {{{PRODUCTS_OF_A_THREAD}}})) {{
            {fail}
        }}
    }}
    """


def check(props: tuple, index: str, numbers: list[str], output: str, fail: str) -> str:
    """C code that makes `output` a view of `index`, or raises what the Python op says of it.

    Parameters
    ----------
    props : tuple
        What the op of this check is built from: strings, and pairs of strings.
    index, numbers, output : str
        The C variables of the index, of the number of blocks and the sizes, and of the result.
    fail : str
        C code to run once a Python error is set.
    """
    *names, pairs = props
    strings = [json.dumps(text) for text in (*names, *(text for pair in pairs for text in pair))]
    layout = f"{'s' * len(names)}({'(ss)' * len(pairs)})"
    return f"""
    {{
        PyArrayObject* const numbers[] = {{{", ".join(numbers)}}};
        const auto make_op = [] () -> PyObject* {{
            PyObject* module = PyImport_ImportModule("blocksparse_ops.index");
            if (!module) return nullptr;
            PyObject* op = PyObject_CallMethod(module, "CheckBlockIndex", "{layout}",
                                               {", ".join(strings)});
            Py_DECREF(module);
            return op;
        }};
        if (!blocksparse::check_index_and_sizes({index}, numbers, {len(numbers)}, make_op)) {{
            {fail}
        }}
        Py_INCREF({index});
        Py_XSETREF({output}, {index});
    }}
    """
