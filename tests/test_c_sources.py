"""The C++ headers: no warnings, a version that follows them, and no need for a compiler."""

import os
import shutil
import subprocess
import sys
import sysconfig
import threading
from importlib import resources
from pathlib import Path

import numpy as np
import oracle
import pytensor
import pytest
from cases import Draw, Sizes, needs_compiler, symbols
from kernel_fuzz import compiled
from pytensor import config
from pytensor.graph.op import Op
from pytensor.link.c.op import COp

from blocksparse_ops import sparse_block_gemv, sparse_block_gemv_inplace
from blocksparse_ops.kernels.c import extension

FOLDER = resources.files("blocksparse_ops.kernels.c")


def test_every_header_is_handed_over():
    assert {path.name for path in FOLDER.iterdir() if path.name.endswith(".hpp")} == {
        f"{name}.hpp" for name in extension.HEADERS
    }


def subclasses(cls):
    for subclass in cls.__subclasses__():
        yield subclass
        yield from subclasses(subclass)


def test_every_op_that_has_cpp_is_asked_for_it():
    ours = {op for op in subclasses(Op) if op.__module__.startswith("blocksparse_ops.")}
    assert {op for op in ours if hasattr(op, "c_code") and not issubclass(op, COp)} == set()


@needs_compiler
@pytest.mark.parametrize("name", extension.HEADERS)
def test_headers_compile_alone_without_warnings(name, tmp_path):
    path = tmp_path / "alone.cpp"
    kernels = {"gemv": ["Gemv"], "outer": ["Outer"], "direct": ["DirectGemv", "DirectOuter"]}
    uses = [
        f"template class blocksparse::{kernel}<{scalar}>;\n"
        for kernel in kernels.get(name, ())
        for scalar in ("float", "double")
    ]
    path.write_text(f'#include "{name}.hpp"\n{"".join(uses)}')
    # Python's and NumPy's own headers are not ours to keep free of warnings.
    others = [sysconfig.get_paths()["include"], np.get_include()]
    flags = ["-O2", "-Wall", "-Wextra", "-Werror", *(f"-isystem{folder}" for folder in others)]
    assert compiled(path, config.cxx, *flags, "-c").exists()


def test_a_changed_source_is_another_extension(monkeypatch):
    args = extension.compile_args("direct_float64", openmp=False)
    names = {extension.name_of("direct_float64", args)}
    names.add(extension.name_of("direct_float64", [*args, "-fopenmp"]))
    changed = extension.headers() + "// one more line\n"
    monkeypatch.setattr(extension, "headers", lambda: changed)
    names.add(extension.name_of("direct_float64", args))
    assert len(names) == 3


# To optimise would take most of the time, and is nothing that the tests of a build look at.
HARDLY = "-O0"

BUILD = """
from blocksparse_ops.kernels.c import extension
function = extension.function("direct_float64", "SparseBlockGemv", False)
args = tuple(extension.compile_args("direct_float64", False))
print(extension.extension("direct_float64", args).__spec__.origin)
"""


def start_building(folder):
    flags = f"base_compiledir={folder},gcc__cxxflags={HARDLY}"
    environment = {**os.environ, "PYTENSOR_FLAGS": flags}
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", BUILD],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )


@needs_compiler
def test_processes_that_build_at_the_same_time(tmp_path):
    processes = [start_building(tmp_path) for _ in range(3)]
    origins = {process.communicate()[0].strip() for process in processes}
    assert [process.returncode for process in processes] == [0, 0, 0]
    (origin,) = origins
    assert [str(path) for path in Path(origin).parent.iterdir()] == [origin]


@needs_compiler
def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    """The extension is built elsewhere, for this process alone."""
    taken = tmp_path / "blocksparse_ops"
    taken.write_text("not a folder")
    name = extension.name_of("direct_float64", ())
    args = [*extension.compile_args("direct_float64", openmp=False), HARDLY]
    path = extension.build(
        extension.source("direct_float64", name), name, args, taken / f"{name}.so"
    )
    assert path.exists()
    assert tmp_path not in path.parents
    shutil.rmtree(path.parent)


def test_dtypes_without_kernels_fall_to_perform():
    node = sparse_block_gemv(*Draw(Sizes(1, 1, 1, 1, 1, 1, 1), 0, "complex64").gemv().values())
    with pytest.raises(NotImplementedError, match="complex64"):
        sparse_block_gemv.c_code(node.owner, "", [], ["out"], {"fail": ""})


WITHOUT_COMPILER = """
import numpy as np, pytensor
from blocksparse_ops import sparse_block_dot
assert not pytensor.config.cxx
out = sparse_block_dot(np.ones((3, 2, 4, 5)), np.ones((2, 2, 4)), [[0, 1], [1, 2]],
                       np.ones((2, 5)), [[0], [1]])
for mode in ("FAST_COMPILE", "CVM", "NUMBA"):
    np.testing.assert_array_equal(pytensor.function([], out, mode=mode)(), np.full((2, 1, 5), 9.0))
"""


def test_everything_works_without_a_compiler():
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", WITHOUT_COMPILER],
        env={"PYTENSOR_FLAGS": "cxx=,on_opt_error=raise", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr


@needs_compiler
def test_the_gil_is_released_while_kernels_run():
    """Another Python thread sees an output that is half written."""
    sizes = Sizes(iBlocks=1, oBlocks=1, iSize=1024, oSize=1024, iWin=1, oWin=1, batch=2000)
    arrays = Draw(sizes, 0, "float32").gemv()
    o = pytensor.shared(np.zeros_like(arrays.pop("o")), borrow=True)
    inputs = symbols(arrays)
    function = pytensor.function(
        list(inputs.values()),
        updates={o: sparse_block_gemv_inplace(o, *inputs.values())},
        mode="CVM",
        accept_inplace=True,
    )
    storage = o.get_value(borrow=True)
    seen = False
    for _ in range(20):
        storage[:] = 0
        thread = threading.Thread(target=function, args=arrays.values())
        thread.start()
        while thread.is_alive() and not seen:
            seen = bool(storage[0, 0, 0] != 0 and storage[-1, 0, -1] == 0)
        thread.join()
    assert seen


@needs_compiler
def test_it_compiles_as_pymc_has_it():
    """PyMC switches exceptions off in all C++ that PyTensor compiles; to optimise takes longer."""
    flags = f"{config.gcc__cxxflags} -fno-exceptions -fno-unwind-tables -O0"
    arrays = Draw(Sizes(3, 2, 5, 4, 2, 3, 4), 0, "float64").gemv()
    inputs = list(symbols(arrays).values())
    with config.change_flags(gcc__cxxflags=flags):
        function = pytensor.function(inputs, sparse_block_gemv(*inputs), mode="CVM")
    oracle.assert_within_bound(function(*arrays.values()), oracle.gemv(*arrays.values()))
