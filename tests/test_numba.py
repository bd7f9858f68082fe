"""The Numba dispatch is there whenever PyTensor asks for it, and never before."""

import pickle
import shutil
import subprocess
import sys
import warnings
from ctypes import addressof
from functools import partial
from importlib import resources
from pathlib import Path

import numpy as np
import oracle
import pytensor
import pytensor.tensor as pt
import pytest
from cases import Draw, Sizes, symbols
from fresh import in_a_fresh_process
from numba.core.types import float64, int64
from pytensor.compile.builders import OpFromGraph
from pytensor.compile.mode import Mode, get_default_mode
from pytensor.graph.replace import vectorize_graph

from blocksparse_ops import sparse_block_dot, sparse_block_gemv
from blocksparse_ops.kernels.numba import version
from blocksparse_ops.kernels.numba.check import CHECK_VALUES, PASS_OVER
from blocksparse_ops.kernels.numba.compile import LOADERS
from blocksparse_ops.kernels.numba.direct import RUN_DIRECT_GEMV
from blocksparse_ops.kernels.numba.gemv import CHECK_GEMV
from blocksparse_ops.kernels.numba.perform import NEW_GEMV

SIZES = Sizes(iBlocks=3, oBlocks=4, iSize=5, oSize=6, iWin=2, oWin=3, batch=7)


def sum_of(x):
    """Along one axis: Numba takes seconds to compile a sum along more."""
    return x.ravel().sum()


def plain(arrays):
    inputs = symbols(arrays)
    return list(inputs.values()), sum_of(sparse_block_dot(**inputs))


def in_scan(arrays):
    """The mean of two equal steps."""
    inputs = list(symbols(arrays).values())
    total = pytensor.scan(
        lambda total, *args: total + sum_of(sparse_block_dot(*args)) / 2,
        outputs_info=[pt.constant(0.0, dtype="float64")],
        non_sequences=inputs,
        n_steps=2,
        return_updates=False,
    )
    return inputs, total[-1]


def in_op_from_graph(arrays):
    inside, out = plain(arrays)
    outside = list(symbols(arrays).values())
    return outside, OpFromGraph(inside, [out])(*outside)


def in_blockwise(arrays):
    """Vectorised over two equal weights."""
    inputs = symbols(arrays)
    out = vectorize_graph(
        sparse_block_dot(**inputs), {inputs["W"]: pt.stack([inputs["W"], inputs["W"]])}
    )
    return list(inputs.values()), sum_of(out) / 2


def in_gradients_only(arrays):
    """<W, gradient in W> + <b, gradient in b> is the sum itself."""
    inputs = symbols(arrays)
    wrt = [inputs["W"], inputs["b"]]
    gradients = pt.grad(sparse_block_dot(**inputs).sum(), wrt)
    total = sum(sum_of(v * g) for v, g in zip(wrt, gradients, strict=True))
    return list(inputs.values()), total


PLACES = {
    f.__name__: f for f in (plain, in_scan, in_op_from_graph, in_blockwise, in_gradients_only)
}

MODES = {
    "default": get_default_mode,
    "excluding blocksparse": lambda: get_default_mode().excluding("blocksparse"),
    "no optimizer": lambda: Mode("numba", optimizer=None),
}


def begin():
    """What a process that is fresh begins with."""
    assert "blocksparse_ops.link.numba" not in sys.modules
    warnings.simplefilter("error", UserWarning)


def compile_and_check(place, mode, path):
    begin()
    arrays = Draw(SIZES, 0, "float64").dot()
    inputs, total = PLACES[place](arrays)
    function = pytensor.function(inputs, total, mode=MODES[mode](), on_unused_input="ignore")
    check(function)
    Path(path).write_bytes(pickle.dumps(function))


def unpickle_and_check(path):
    begin()
    check(pickle.loads(Path(path).read_bytes()))


def check(function):
    assert type(function.maker.linker).__name__ == "NumbaLinker"
    arrays = Draw(SIZES, 0, "float64").dot()
    expected = oracle.dot(**arrays)[0].sum()
    np.testing.assert_allclose(function(*arrays.values()), float(expected), rtol=1e-10)


@pytest.mark.parametrize("place", PLACES)
def test_no_object_mode_wherever_the_op_stands(place, tmp_path):
    """Where a graph is compiled, nor where a function is unpickled."""
    path = str(tmp_path / "function.pickle")
    in_a_fresh_process(compile_and_check, place, "default", path)
    in_a_fresh_process(unpickle_and_check, path)


@pytest.mark.parametrize("mode", [mode for mode in MODES if mode != "default"])
def test_no_object_mode_whatever_is_excluded(mode, tmp_path):
    in_a_fresh_process(compile_and_check, "plain", mode, str(tmp_path / "function.pickle"))


TIMED = """
import time, numpy as np, pytensor, pytensor.tensor as pt
from numba.core import compiler
from blocksparse_ops import sparse_block_gemv
compiled = []
original = compiler.compile_extra
def compile_extra(typing, target, function, *args, **kwargs):
    compiled.append(getattr(function, "__module__", ""))
    return original(typing, target, function, *args, **kwargs)
compiler.compile_extra = compile_extra
arrays = [np.ones((2, 3, 4)), np.ones((5, 6, 7, 4)), np.ones((2, 1, 7)),
          np.zeros((2, 1), "int64"), np.zeros((2, 3), "int64")]
inputs = [pt.tensor(dtype=a.dtype, shape=(None,) * a.ndim) for a in arrays]
function = pytensor.function(inputs, sparse_block_gemv(*inputs), mode="NUMBA")
function(*arrays)
print(any("blocksparse_ops" in module for module in compiled))
"""


def test_the_second_process_finds_the_kernels_on_disk(tmp_path):
    """Seen by which functions a process compiles: none of ours, once they lie on the disk.

    A process without the cache does not look for them there.
    """
    seen = []
    for cache in (True, True, False):
        flags = f"base_compiledir={tmp_path},numba__cache={cache}"
        run = subprocess.run(
            [sys.executable, "-c", TIMED],
            # Which functions are compiled is seen, not how fast they are.
            env={"PYTENSOR_FLAGS": flags, "NUMBA_OPT": "1", "PATH": "/usr/bin:/bin"},
            capture_output=True,
            text=True,
            check=True,
        )
        seen.append(run.stdout.strip())
    assert seen == ["True", "False", "True"]


@pytest.mark.parametrize(("unit", "scalar"), [
    (NEW_GEMV, float64), (RUN_DIRECT_GEMV, float64), (CHECK_GEMV, int64), (CHECK_VALUES, int64),
    (PASS_OVER, int64),
], ids=["new", "run", "check", "values", "pass"])  # fmt: skip
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_what_cannot_be_compiled(unit, scalar, error, monkeypatch, capsys):
    """It is an error of the call that needs it, and the next call tries again."""
    arrays = Draw(SIZES, 0, "float64").gemv()
    inputs = symbols(arrays)
    f = pytensor.function(list(inputs.values()), sparse_block_gemv(**inputs), mode="NUMBA")
    expected = f(*arrays.values())

    def fail():
        raise error("planted")

    cells = unit.cells[scalar]
    compiled = cells[0]
    monkeypatch.setitem(LOADERS, addressof(cells), fail)
    cells[0] = 0
    with pytest.raises(RuntimeError, match=f"{unit.name} could not be compiled"):
        f(*arrays.values())
    assert f"{error.__name__}: planted" in capsys.readouterr().err
    monkeypatch.setitem(LOADERS, addressof(cells), partial(cells.__setitem__, 0, compiled))
    np.testing.assert_array_equal(f(*arrays.values()), expected)


def compile_for_indices():
    """Of blocks counted from the start, and then from the end, too."""
    begin()
    arrays = Draw(SIZES, 0, "float64").gemv()
    inputs = symbols(arrays)
    f = pytensor.function(list(inputs.values()), sparse_block_gemv(**inputs), mode="NUMBA")
    i, j = arrays["inputIdx"] % SIZES.iBlocks, arrays["outputIdx"] % SIZES.oBlocks
    is_compiled = []
    for indices in ({"inputIdx": i, "outputIdx": j}, {}):
        f(*{**arrays, **indices}.values())
        is_compiled.append(bool(CHECK_VALUES.cells[int64][0]))
    return is_compiled


def test_what_goes_over_each_value_is_compiled_for_what_needs_it():
    assert in_a_fresh_process(compile_for_indices) == [False, True]


def test_cache_version_follows_the_sources(tmp_path, monkeypatch):
    """A change of one byte in one kernel is another version."""
    source = resources.files("blocksparse_ops")
    copy = tmp_path / "blocksparse_ops"
    shutil.copytree(source, copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr("blocksparse_ops.kernels.numba.files", lambda package: copy)
    assert version.__wrapped__() == version()
    kernel = copy / "kernels" / "numba" / "tile.py"
    kernel.write_text(kernel.read_text() + "\n")
    assert version.__wrapped__() != version()
