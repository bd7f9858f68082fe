"""A gradient in the weights that a Scan sums up over its steps is summed up in place."""

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from cases import MODES as ALL_MODES
from cases import Draw, Sizes
from pytensor.compile.mode import Mode, get_mode
from pytensor.scan.op import Scan

from blocksparse_ops import SparseBlockOuter, sparse_block_dot

SIZES = Sizes(iBlocks=6, oBlocks=7, iSize=4, oSize=5, iWin=2, oWin=3, batch=3)

MODES = ALL_MODES[1:]


def recurrent_gradient(n_steps):
    """The gradient in W of a loss summed over time, and values for its inputs."""
    draws = [Draw(SIZES, seed, "float64").dot() for seed in range(max(n_steps, 1))]
    W, b = draws[0]["W"], pytensor.shared(draws[0]["b"], "b")
    names = ("h", "inputIdx", "outputIdx")
    values = [np.stack([draw[name] for draw in draws])[:n_steps] for name in names]
    inputs = [pt.tensor(dtype=v.dtype, shape=(None,) * v.ndim) for v in values]
    shared_W = pytensor.shared(W, "W")

    def step(h, inputIdx, outputIdx, loss):
        return loss + (pt.tanh(sparse_block_dot(shared_W, h, inputIdx, b, outputIdx)) ** 2).sum()

    losses = pytensor.scan(
        step,
        sequences=inputs,
        outputs_info=[pt.constant(0.0, dtype="float64")],
        return_updates=False,
    )
    return inputs, pt.grad(losses[-1], shared_W), values


def without_rewrites(inputs, outputs, values):
    """Values of the graph without our rewrites, or the error; in Python, which compiles nothing."""
    mode = Mode("py", "fast_run").excluding("blocksparse")
    with pytensor.config.change_flags(cxx=""):
        function = pytensor.function(inputs, outputs, mode=mode, on_unused_input="ignore")
        return function(*values)


def scans(function):
    return [node for node in function.maker.fgraph.toposort() if isinstance(node.op, Scan)]


@pytest.mark.parametrize("mode", MODES)
def test_the_sum_is_made_in_place(mode):
    inputs, gradient, values = recurrent_gradient(4)
    function = pytensor.function(inputs, gradient, mode=mode)
    expected = without_rewrites(inputs, gradient, values)
    np.testing.assert_allclose(function(*values), expected, rtol=1e-12, atol=1e-12)
    (scan,) = [node for node in scans(function) if node.outputs[-1].type.ndim == 4]
    if mode != "NUMBA":
        assert scan.op.fn is not None
    outers = [n for n in scan.op.fgraph.toposort() if isinstance(n.op, SparseBlockOuter)]
    assert [node.op.inplace for node in outers] == [True]
    state = outers[0].outputs[0]
    assert state in scan.op.inner_untraced_sit_sot_outs(scan.op.fgraph.outputs)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("n_steps", [0, 1, 2])
def test_few_steps(mode, n_steps):
    inputs, gradient, values = recurrent_gradient(n_steps)
    function = pytensor.function(inputs, gradient, mode=mode, on_unused_input="ignore")
    try:
        expected = without_rewrites(inputs, gradient, values)
    except IndexError:
        # The loss of no steps has no last value; PyTensor says so either way.
        with pytest.raises(IndexError):
            function(*values)
    else:
        np.testing.assert_allclose(function(*values), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("excluded", ["zeros", "state"])
def test_each_rewrite_can_be_excluded(excluded):
    inputs, gradient, values = recurrent_gradient(3)
    mode = get_mode("NUMBA").excluding(f"local_scan_sparse_block_outer_{excluded}")
    function = pytensor.function(inputs, gradient, mode=mode)
    expected = without_rewrites(inputs, gradient, values)
    np.testing.assert_allclose(function(*values), expected, rtol=1e-12, atol=1e-12)


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
    expected = without_rewrites([o, x, y], outputs, values)
    for one, other in zip(function(*values), expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12)
