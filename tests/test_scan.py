"""A gradient in the weights that a Scan sums up over its steps is summed up in place."""

from functools import cache

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from cases import MODES as ALL_MODES
from cases import Draw, Sizes, in_python
from pytensor.compile.mode import Mode, get_mode
from pytensor.scan.op import Scan

from blocksparse_ops import SparseBlockOuter, sparse_block_dot

SIZES = Sizes(iBlocks=6, oBlocks=7, iSize=4, oSize=5, iWin=2, oWin=3, batch=3)

MODES = ALL_MODES[1:]


NAMES = ("h", "inputIdx", "outputIdx")


def recurrent_gradient():
    """The inputs of a loss summed over time, and its gradient in W."""
    arrays = Draw(SIZES, 0, "float64").dot()
    W, b = (pytensor.shared(arrays[name], name) for name in ("W", "b"))
    inputs = [
        pt.tensor(dtype=a.dtype, shape=(None,) * (a.ndim + 1)) for a in map(arrays.get, NAMES)
    ]

    def step(h, inputIdx, outputIdx, loss):
        return loss + (pt.tanh(sparse_block_dot(W, h, inputIdx, b, outputIdx)) ** 2).sum()

    losses = pytensor.scan(
        step,
        sequences=inputs,
        outputs_info=[pt.constant(0.0, dtype="float64")],
        return_updates=False,
    )
    return inputs, pt.grad(losses[-1], W)


def sequences(n_steps):
    """Values for the inputs of that many steps."""
    draws = [Draw(SIZES, seed, "float64").dot() for seed in range(max(n_steps, 1))]
    return [np.stack([draw[name] for draw in draws])[:n_steps] for name in NAMES]


@cache
def gradient_function(mode):
    return pytensor.function(*recurrent_gradient(), mode=mode)


def python_function(inputs, outputs, mode):
    """With Scans in Python, too."""
    with pytensor.config.change_flags(cxx=""):
        return pytensor.function(inputs, outputs, mode=mode)


WITHOUT_REWRITES = Mode("py", "fast_run").excluding("blocksparse")


@cache
def expected_gradient(n_steps):
    return python_function(*recurrent_gradient(), WITHOUT_REWRITES)(*sequences(n_steps))


def scans(function):
    return [node for node in function.maker.fgraph.toposort() if isinstance(node.op, Scan)]


@pytest.mark.parametrize("mode", MODES)
def test_the_sum_is_made_in_place(mode):
    function = gradient_function(mode)
    actual, expected = function(*sequences(4)), expected_gradient(4)
    np.testing.assert_allclose(actual, expected, rtol=1e-12, atol=1e-12)
    (scan,) = [node for node in scans(function) if node.outputs[-1].type.ndim == 4]
    if mode != "NUMBA":
        assert scan.op.fn is not None
    outers = [n for n in scan.op.fgraph.toposort() if isinstance(n.op, SparseBlockOuter)]
    assert [node.op.inplace for node in outers] == [True]
    state = outers[0].outputs[0]
    assert state in scan.op.inner_untraced_sit_sot_outs(scan.op.fgraph.outputs)


@pytest.mark.parametrize("mode", MODES)
def test_few_steps(mode):
    for n_steps in (1, 2):
        actual, expected = gradient_function(mode)(*sequences(n_steps)), expected_gradient(n_steps)
        np.testing.assert_allclose(actual, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("mode", MODES)
def test_no_steps(mode):
    """The loss of none has no last value; PyTensor says so either way."""
    for values_of in (
        gradient_function(mode),
        python_function(*recurrent_gradient(), WITHOUT_REWRITES),
    ):
        with pytest.raises(IndexError):
            values_of(*sequences(0))


@pytest.mark.parametrize("excluded", ["zeros", "state"])
def test_each_rewrite_can_be_excluded(excluded):
    mode = in_python(get_mode("NUMBA").excluding(f"local_scan_sparse_block_outer_{excluded}"))
    actual = python_function(*recurrent_gradient(), mode)(*sequences(3))
    np.testing.assert_allclose(actual, expected_gradient(3), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("mode", MODES)
def test_all_partial_sums_are_kept_where_they_are_used(mode):
    """A Scan of the user's own, of whose trace more than the last state is used."""
    arrays = Draw(SIZES, 0, "float64").outer()
    x, y = pt.tensor3("x", dtype="float64"), pt.tensor3("y", dtype="float64")
    o = pt.tensor4("o", dtype="float64")

    def step(total):
        zeros = pt.zeros_like(total)
        outer = SparseBlockOuter()(zeros, x, y, arrays["xIdx"], arrays["yIdx"], 0.5)
        return total - outer

    trace = pytensor.scan(step, outputs_info=[o], n_steps=3, return_updates=False)
    outputs = [trace[0].sum(), trace[-1]]
    values = [arrays["o"], arrays["x"], arrays["y"]]
    function = pytensor.function([o, x, y], outputs, mode=mode)
    expected = python_function([o, x, y], outputs, WITHOUT_REWRITES)(*values)
    for one, other in zip(function(*values), expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12)
