"""Windows of all blocks, in order, are a matrix product where that is faster."""

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from cases import MODES, in_python

from blocksparse_ops import (
    SparseBlockGemv,
    SparseBlockOuter,
    sparse_block_dot,
    sparse_block_gemv,
    sparse_block_outer,
)
from blocksparse_ops.rewrites.full import MOST_ELEMENTS

BATCH, I_BLOCKS, O_BLOCKS, I_SIZE, O_SIZE = 32, 3, 2, 4, 5


def windows(count, batch=BATCH):
    return np.tile(np.arange(count), (batch, 1))


def problem(dtype="float64", oSize=O_SIZE):
    rng = np.random.default_rng(0)
    arrays = (
        rng.normal(size=(I_BLOCKS, O_BLOCKS, I_SIZE, oSize)),
        rng.normal(size=(BATCH, I_BLOCKS, I_SIZE)),
    )
    arrays = [array.astype(dtype) for array in arrays]
    return arrays, [pt.tensor(dtype=dtype, shape=array.shape) for array in arrays]


def ours(function):
    ops = SparseBlockGemv, SparseBlockOuter
    return sum(isinstance(node.op, ops) for node in function.maker.fgraph.apply_nodes)


@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("mode", MODES[1:])
def test_a_product_and_its_gradients(mode, dtype, has_bias):
    arrays, (W, h) = problem(dtype)
    b = np.arange(O_BLOCKS * O_SIZE, dtype=dtype).reshape(O_BLOCKS, O_SIZE) if has_bias else None
    out = sparse_block_dot(W, h, windows(I_BLOCKS), b, windows(O_BLOCKS))
    outputs = [out, *pt.grad((out**2).sum(), [W, h])]
    function = pytensor.function([W, h], outputs, mode=in_python(mode))
    assert ours(function) == 0
    expected = pytensor.function([W, h], outputs, mode="FAST_COMPILE")(*arrays)
    rtol = 1e-4 if dtype == "float32" else 1e-9
    for one, other in zip(function(*arrays), expected, strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_allclose(one, other, rtol=rtol, atol=rtol)  # sums may cancel


def test_a_step_in_place():
    (W_value, h_value), (_, h) = problem()
    W = pytensor.shared(W_value, shape=W_value.shape)
    out = sparse_block_dot(W, h, windows(I_BLOCKS), None, windows(O_BLOCKS))
    new = W - 0.1 * pt.grad((out**2).sum(), W)
    expected = pytensor.function([h], new, mode="FAST_COMPILE")(h_value)
    function = pytensor.function([h], updates=[(W, new)], mode=in_python("CVM"))
    assert ours(function) == 0
    function(h_value)
    np.testing.assert_allclose(W.get_value(), expected, rtol=1e-9)


OTHERS = {
    "some blocks": (windows(I_BLOCKS)[:, :2], windows(O_BLOCKS)),
    "another order": (windows(I_BLOCKS)[:, ::-1], windows(O_BLOCKS)),
    "all but one example": (
        np.concatenate([windows(I_BLOCKS, BATCH - 1), [[0, 1, 1]]]),
        windows(O_BLOCKS),
    ),
    "indices that are not known": (None, windows(O_BLOCKS)),
}


@pytest.mark.parametrize("name", OTHERS)
def test_others_stay(name):
    (W_value, h_value), (W, h) = problem()
    inputIdx, outputIdx = OTHERS[name]
    i = pt.lmatrix("i")
    h_value = h_value[:, : 2 if name == "some blocks" else I_BLOCKS]
    h = pt.dtensor3("h")
    out = sparse_block_dot(W, h, i if inputIdx is None else inputIdx, None, outputIdx)
    options = {"mode": in_python("CVM"), "on_unused_input": "ignore"}
    function = pytensor.function([W, h, i], out, **options)
    assert ours(function) == 1
    index = windows(I_BLOCKS) if inputIdx is None else inputIdx
    expected = np.einsum("nvp,nvwpq->nwq", h_value, W_value[index[:, :, None], outputIdx[:, None]])
    np.testing.assert_allclose(function(W_value, h_value, windows(I_BLOCKS)), expected, rtol=1e-9)


def test_few_examples_and_padding_stay():
    indices = windows(I_BLOCKS, BATCH - 1), windows(O_BLOCKS, BATCH - 1)
    _, (W, _) = problem()
    h = pt.dtensor3("h")
    out = sparse_block_dot(W, h, indices[0], None, indices[1])
    assert ours(pytensor.function([W, h], out, mode=in_python("CVM"))) == 1
    indices = windows(I_BLOCKS), windows(O_BLOCKS)
    _, (W, h) = problem()
    padded = sparse_block_dot(W, h, indices[0], None, indices[1], padding_idx=0)
    assert ours(pytensor.function([W, h], padded, mode=in_python("CVM"))) == 1


@pytest.mark.parametrize(("elements", "left"), [(MOST_ELEMENTS, 0), (MOST_ELEMENTS + I_SIZE, 1)])
def test_large_blocks_stay(elements, left):
    _, (W, h) = problem(oSize=elements // I_SIZE)
    out = sparse_block_dot(W, h, windows(I_BLOCKS), None, windows(O_BLOCKS))
    assert ours(pytensor.function([W, h], out, mode=in_python("CVM"))) == left


@pytest.mark.parametrize("alpha", [1, 2, -0.5])
def test_an_outer_product_is_scaled(alpha):
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=shape) for shape in ((BATCH, I_BLOCKS, I_SIZE), (BATCH, O_BLOCKS, 5))]
    x, y = inputs = [pt.tensor(dtype="float64", shape=array.shape) for array in arrays]
    zeros = np.zeros((I_BLOCKS, O_BLOCKS, I_SIZE, 5))
    out = sparse_block_outer(zeros, x, y, windows(I_BLOCKS), windows(O_BLOCKS), alpha)
    function = pytensor.function(inputs, out, mode=in_python("CVM"))
    assert ours(function) == 0
    expected = alpha * np.einsum("nvp,nwq->vwpq", *arrays)
    np.testing.assert_allclose(function(*arrays), expected, rtol=1e-9, atol=1e-9)


def test_a_scale_that_may_be_zero_stays():
    o, x, y, alpha = pt.dtensor4(), pt.dtensor3(), pt.dtensor3(), pt.dscalar()
    o = pt.specify_shape(o, (I_BLOCKS, O_BLOCKS, I_SIZE, O_SIZE))
    out = sparse_block_outer(o, x, y, windows(I_BLOCKS), windows(O_BLOCKS), alpha)
    function = pytensor.function([o.owner.inputs[0], x, y, alpha], out, mode=in_python("CVM"))
    assert ours(function) == 1
    values = [np.ones(o.type.shape), *(np.full((BATCH, *s), np.nan) for s in ((3, 4), (2, 5)))]
    np.testing.assert_array_equal(function(*values, 0), 1)


def test_sizes_that_disagree_are_an_error():
    (W_value, h_value), (W, _) = problem()
    h = pt.dtensor3("h")
    out = sparse_block_dot(W, h, windows(I_BLOCKS), None, windows(O_BLOCKS))
    function = pytensor.function([W, h], out, mode=in_python("CVM"))
    assert ours(function) == 0
    of_another_shape = h_value.transpose(0, 2, 1), h_value.reshape(BATCH // 2, -1, I_SIZE)
    for wrong in (h_value[1:], h_value[:, 1:], h_value[:, :, 1:], *of_another_shape):
        with pytest.raises(ValueError, match="SparseBlockGemv: h must have the shape"):
            function(W_value, wrong)


@pytest.mark.parametrize("mode", MODES[1:])
def test_a_start_of_another_size_is_an_error(mode):
    """Of one example or column, too, which would be repeated for all."""
    (W, h), _ = problem()
    o = pt.dtensor3("o")
    out = sparse_block_gemv(o, W, h, windows(I_BLOCKS), windows(O_BLOCKS))
    function = pytensor.function([o], out, mode=in_python(mode))
    assert ours(function) == 0
    start = np.ones((BATCH, O_BLOCKS, O_SIZE))
    function(start)
    for wrong in (start[1:], start[:1], start[:, :1], start[:, :, :1], start[:, :, 1:]):
        with pytest.raises(ValueError, match="SparseBlockGemv: o must have the shape"):
            function(wrong)


@pytest.mark.parametrize("mode", MODES)
def test_sizes_of_an_outer_that_disagree_are_an_error(mode):
    x, y = pt.dtensor3("x"), pt.dtensor3("y")
    o = np.zeros((I_BLOCKS, O_BLOCKS, I_SIZE, O_SIZE))
    out = sparse_block_outer(o, x, y, windows(I_BLOCKS), windows(O_BLOCKS))
    function = pytensor.function([x, y], out, mode=mode)
    values = [np.ones((BATCH, I_BLOCKS, I_SIZE)), np.ones((BATCH, O_BLOCKS, O_SIZE))]
    assert (function(*values) == BATCH).all()
    for k, name in enumerate("xy"):
        wrong = [v.transpose(0, 2, 1) if k == n else v for n, v in enumerate(values)]
        with pytest.raises(ValueError, match=f"SparseBlockOuter: {name}"):
            function(*wrong)
