"""Builds the C++ kernels once a machine, for all ops, into PyTensor's compile directory.

A module for each path and scalar, for few programs need more than one. It is found again by a hash
of its source, the compiler's flags and NumPy's version.
"""

import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from functools import cache
from hashlib import sha256
from importlib.machinery import ExtensionFileLoader, ModuleSpec
from importlib.resources import files
from importlib.util import module_from_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from pytensor import config
from pytensor.compile.compilelock import lock_ctx
from pytensor.link.c.cmodule import GCC_compiler, get_lib_extension

from blocksparse_ops.kernels.thresholds import PRODUCTS_OF_A_THREAD
from blocksparse_ops.signature import GEMV, GRADIENT, OUTER, Signature

# Each file after those that it includes.
HEADERS = (
    "arrays",
    "vector",
    "check",
    "choose",
    "split",
    "threads",
    "plan",
    "panel",
    "tile",
    "pack",
    "sums",
    "product",
    "places",
    "ahead",
    "rows",
    "direct",
    "by_block",
    "shared",
    "gemv",
    "outer",
    "gradient",
    "numpy",
)

SCALARS = {"float32": "npy_float32", "float64": "npy_float64"}

# The C++ classes that compute the ops on a path, and the ops' signatures.
DIRECT, PADDED, SORTED = "direct", "padded", "sorted"
KERNELS = {
    DIRECT: {"DirectGemv<{}>": GEMV, "DirectOuter<{}>": OUTER},
    PADDED: {"DirectGemv<{}, true>": GEMV, "DirectOuter<{}, true>": OUTER},
    SORTED: {"Gemv<{}>": GEMV, "Outer<{}>": OUTER, "Gradient<{}>": GRADIENT},
}

COMPILE_ARGS = ("-std=c++17",)

KERNEL = """
bool call_{op}(PyArrayObject* const* inputs, PyArrayObject** outputs, bool inplace,
                   void* const* constants, const npy_int64* padding) {{
    static const blocksparse::SizePair equal_sizes[] = {{{equal_sizes}}};
    static const blocksparse::Settings settings{{
        "{op}", equal_sizes, {count}, {{{products_of_a_thread}}}}};
    blocksparse::{kernel} kernel;
    return blocksparse::call(
        kernel, inputs, outputs, inplace,
        reinterpret_cast<blocksparse::ConstantIndex* const*>(constants),
        {{padding != nullptr, padding ? *padding : 0}}, settings);
}}
"""

MODULE = """
static PyModuleDef definition = {{PyModuleDef_HEAD_INIT, "{name}", nullptr, -1, nullptr}};

PyMODINIT_FUNC PyInit_{name}() {{
    import_array();
    PyObject* module = PyModule_Create(&definition);
    if (!module) return nullptr;
    const std::pair<const char*, void*> functions[] = {{{functions}}};
    for (const auto& function : functions) {{
        PyObject* capsule = PyCapsule_New(function.second, nullptr, nullptr);
        if (!capsule || PyModule_AddObject(module, function.first, capsule) < 0) return nullptr;
    }}
    return module;
}}
"""


@cache
def headers() -> str:
    """All headers as one text, their own includes of each other taken out."""
    folder = files(__package__)
    texts = [folder.joinpath(f"{name}.hpp").read_text("utf-8") for name in HEADERS]
    return re.sub(r'#pragma once\n|#include "\w+\.hpp"\n', "", "\n".join(texts))


def kernel(name: str, signature: Signature, scalar: str) -> str:
    """C++ code of a function that calls one kernel class."""
    return KERNEL.format(
        kernel=name.format(SCALARS[scalar]),
        op=signature.op,
        equal_sizes=", ".join(f"{{{one}, {other}}}" for one, other in signature.equal_sizes),
        count=len(signature.equal_sizes),
        products_of_a_thread=PRODUCTS_OF_A_THREAD,
    )


def source(module: str, name: str) -> str:
    """C++ code of an extension module, for a path and a scalar: "direct_float64"."""
    path, scalar = module.split("_")
    kernels = KERNELS[path]
    functions = {of.op: f"call_{of.op}" for of in kernels.values()}
    body = "".join(kernel(name, of, scalar) for name, of in kernels.items())
    pairs = [f'{{"{key}", reinterpret_cast<void*>({value})}}' for key, value in functions.items()]
    return headers() + body + MODULE.format(name=name, functions=", ".join(pairs))


def compile_args(module: str, openmp: bool) -> list[str]:
    """The compiler's flags; PyTensor's come last, with the user's own among them."""
    flags = ["-fopenmp"] if openmp else []
    # A compiler joins some products and sums to one step, and others not. The direct kernels write
    # each sum in several forms, which must give the same bits.
    flags += [] if module.startswith(SORTED) else ["-ffp-contract=off"]
    # PyTensor asks for debugging information, which takes as long again as all else.
    return ["-O3", "-fno-math-errno", "-g0", *COMPILE_ARGS, *flags, *GCC_compiler.compile_args()]


def name_of(module: str, args: Sequence[str]) -> str:
    """The name of an extension module, which follows all that it is built from."""
    about = (source(module, ""), *args, config.cxx, np.__version__)
    return f"{module}_{sha256(repr(about).encode()).hexdigest()[:32]}"


def function(module: str, name: str, openmp: int) -> Any:
    """A capsule of one function of an extension module, which is built if it is not there."""
    return getattr(extension(module, tuple(compile_args(module, bool(openmp)))), name)


@cache
def extension(module: str, args: tuple[str, ...]) -> ModuleType:
    """The extension module, loaded; built if no process has done so."""
    name = name_of(module, args)
    path = Path(config.compiledir, "blocksparse_ops", f"{name}.{get_lib_extension()}")
    if not path.exists():
        with lock_ctx():
            # Another process may have built it while this one waited for the lock.
            if not path.exists():
                path = build(source(module, name), name, args, path)
    loader = ExtensionFileLoader(name, str(path))
    loaded = module_from_spec(ModuleSpec(name, loader, origin=str(path)))
    loader.exec_module(loaded)
    return loaded


def build(text: str, name: str, args: Sequence[str], path: Path) -> Path:
    """Compile an extension module, and return where it is: at `path`, if that can be written."""
    try:
        path.parent.mkdir(exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=path.parent))
    except OSError:
        folder = Path(tempfile.mkdtemp())
        path = folder / path.name
    GCC_compiler.compile_str(name, text, location=folder, preargs=list(args), py_module=False)
    # At once, for a process that looks for it without the lock.
    os.replace(folder / path.name, path)
    if folder != path.parent:
        shutil.rmtree(folder)
    return path
