"""Weights are never copied whole, nor embedded in compiled code."""

import gc
import resource
import sys
from contextlib import nullcontext

import numba
import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from cases import Draw, Sizes, needs_compiler, symbols
from fresh import in_a_fresh_process

from blocksparse_ops import sparse_block_dot

MODES = ["NUMBA", pytest.param("CVM", marks=needs_compiler)]

MIB = 2**20


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def growth(mode, mebibytes, static):
    """How much the peak of this process grows by compiling, and by calling too, in bytes."""
    size = 16
    blocks = mebibytes * MIB // (4 * size * size)
    # Zeros that nobody writes take no memory, but a copy of them does.
    W = np.zeros((1, blocks, size, size), "float32")
    shape = W.shape if static else (None,) * 4
    W = pytensor.shared(W, "W", borrow=True, shape=shape)
    h, b = pt.tensor3("h", dtype="float32"), pt.matrix("b", dtype="float32")
    inputIdx, outputIdx = pt.lmatrices("inputIdx", "outputIdx")
    values = (
        np.ones((8, 1, size), "float32"),
        np.ones((blocks, size), "float32"),
        np.zeros((8, 1), "int64"),
        np.arange(8).reshape(8, 1),
    )
    before = peak()
    out = sparse_block_dot(W, h, inputIdx, b, outputIdx)
    inputs = [h, b, inputIdx, outputIdx]
    function = pytensor.function(inputs, [out, pt.grad((out**2).sum(), h)], mode=mode)
    function(*values)
    compiled = peak() - before
    for _ in range(3):
        function(*values)
    return compiled, peak() - before


def growth_by_large_weights(mode, static):
    # Takes what compiling does, and leaves far less than a copy of the large one would take.
    growth(mode, 1, static)
    return growth(mode, 1024, static)


@pytest.mark.parametrize("static", [True, False], ids=["static", "dynamic"])
@pytest.mark.parametrize("mode", MODES)
def test_large_weights_are_not_copied(mode, static):
    """1 GiB of shared weights adds less than 100 MiB to the peak that 1 MiB has left."""
    growths = in_a_fresh_process(growth_by_large_weights, mode, static)
    assert (np.array(growths) / MIB < 100).all()


def references_kept(function, arrays, calls, error=None):
    """By how many references to each argument calls leave more than before."""

    def call():
        with pytest.raises(error) if error else nullcontext():
            function(*arrays)

    def count():
        gc.collect()
        return np.array([sys.getrefcount(array) for array in arrays])

    call()  # compiles
    before = count()
    for _ in range(calls):
        call()
    return count() - before


def compiled_product(mode, problem):
    inputs = symbols(problem)
    return pytensor.function([*inputs.values()], sparse_block_dot(**inputs), mode=mode)


PROBLEM = Sizes(4, 3, 17, 20, 2, 2, 5)


@pytest.mark.parametrize("mode", MODES)
def test_calls_leave_nothing(mode):
    problem = Draw(PROBLEM, 0, "float64").dot()
    function = compiled_product(mode, problem)
    assert not references_kept(function, list(problem.values()), 200).any()


@numba.njit
def raise_if_negative(x):
    if x[0] < 0:
        raise IndexError("negative")


@numba.njit
def paired(x, y):
    raise_if_negative(x)
    return x, y


@pytest.mark.parametrize("mode", MODES)
def test_calls_that_fail_leave_no_more_than_numba_does(mode):
    """What Numba compiles does not let go of its arguments where what it calls raises."""
    problem = Draw(PROBLEM, 0, "float64").dot()
    problem["inputIdx"][1, 1] = PROBLEM.iBlocks
    function, calls = compiled_product(mode, problem), 50
    kept = references_kept(function, list(problem.values()), calls, IndexError)
    of_numba = references_kept(paired, [-np.ones(3), np.ones(3)], calls, IndexError)
    assert (of_numba == calls).all()
    assert (kept <= (calls if mode == "NUMBA" else 0)).all()
