"""The gradient by blocks: its values, what uses of the weights it takes, its derivatives."""

from dataclasses import replace
from functools import cache

import numpy as np
import oracle
import pytensor
import pytensor.tensor as pt
import pytest
from cases import ARRAY_MODES, COMPILED_LAYOUTS, MODES, Draw, Sizes, in_python, sizes
from hypothesis import given, settings
from hypothesis import strategies as st
from pytensor.gradient import Rop, verify_grad

from blocksparse_ops import block_gradient, sparse_block_dot, sparse_block_gemv, sparse_block_take
from blocksparse_ops.gradient import BlockGradient, SparseBlockGradient, merged

SIZES = Sizes(iBlocks=5, oBlocks=4, iSize=3, oSize=2, iWin=2, oWin=3, batch=4)


@cache
def compiled(mode, layout, dtype):
    """A function of contiguous buffers; the op sees views of them that lie as `layout` says."""
    arrays = layout.draw(Sizes(1, 1, 1, 1, 1, 1, 1), 0, dtype).outer().values()
    buffers = [pt.tensor(dtype=a.dtype, shape=(None,) * a.ndim) for a in arrays]
    results = SparseBlockGradient(layout.padding_idx)(*layout.views(buffers))
    return pytensor.function(buffers, results, mode=mode)


def expected(o, x, y, xIdx, yIdx, alpha, padding_idx):
    """The blocks that the indices name, in their order, and what the oracle adds to each."""
    named = np.zeros(o.shape[:2], bool)
    for pair in zip(xIdx.astype(int), yIdx.astype(int), strict=True):
        named[np.ix_(*(index[index != padding_idx] for index in pair))] = True
    value, magnitude, terms = oracle.outer(np.zeros_like(o), x, y, xIdx, yIdx, alpha, padding_idx)
    return np.nonzero(named), (value[named], magnitude[named], terms)


def check(mode, layout, dtype, draw):
    arrays = draw.outer().values()
    *blocks, values = compiled(mode, layout, dtype)(*layout.buffers(arrays))
    in_use, of_blocks = expected(*arrays, layout.padding_idx)
    np.testing.assert_array_equal(blocks, in_use)
    assert values.dtype == dtype
    agree = oracle.assert_exact if draw.integers else oracle.assert_within_bound
    agree(values, of_blocks)


@pytest.mark.parametrize(
    ("laid", "dtype"),
    [*zip(COMPILED_LAYOUTS[:4], ("float32", "float64", "float32", "float64"), strict=True)],
)
@pytest.mark.parametrize("mode", MODES)
@settings(max_examples=70, deadline=None)
@given(sizes=sizes, seed=st.integers(0, 2**32 - 1))
def test_random_problems(mode, laid, dtype, sizes, seed):
    for integers in (False, True):
        check(mode, laid, dtype, laid.draw(sizes, seed, dtype, integers))


@pytest.mark.parametrize(
    ("dtype", "padding_idx"), [("int16", None), ("complex64", None), ("complex64", -1)]
)
@pytest.mark.parametrize("mode", MODES)
def test_other_dtypes(mode, dtype, padding_idx):
    layout = replace(COMPILED_LAYOUTS[0], padding_idx=padding_idx)
    check(mode, layout, dtype, layout.draw(SIZES, 0, dtype))


@pytest.mark.parametrize("mode", MODES)
def test_a_wrong_index_is_told(mode):
    arrays = Draw(SIZES, 0, "float64").outer()
    arrays["yIdx"][2, 1] = 4
    told = r"SparseBlockGradient: yIdx\[2, 1\] = 4 is out of range: o.shape\[1\] = 4"
    with pytest.raises(IndexError, match=told):
        compiled(mode, COMPILED_LAYOUTS[0], "float64")(*arrays.values())


class Model:
    """Weights of shape (iBlocks, oBlocks, iSize, oSize), and what products take besides."""

    def __init__(self, dtype="float64"):
        draw = Draw(SIZES, 1, dtype)
        self.W = pytensor.shared(draw.gemv()["W"], "W")
        self.b = pytensor.shared(draw.dot()["b"], "b")
        self.h, self.g = pt.tensor3("h"), pt.tensor3("g")
        self.i, self.j = pt.lmatrices("i", "j")
        s = SIZES
        self.values = {
            self.h: draw.values(s.batch, s.iWin, s.iSize).astype("float64"),
            self.g: draw.values(s.batch, s.oWin, s.oSize).astype("float64"),
            self.i: draw.index(s.iBlocks, s.iWin, "int64"),
            self.j: draw.index(s.oBlocks, s.oWin, "int64"),
        }

    def dot(self, W, b=None):
        return sparse_block_dot(W, self.h, self.i, b, self.j)

    def transposed_dot(self, W):
        return sparse_block_dot(W.transpose(1, 0, 3, 2), self.g, self.j, None, self.i)

    def eval(self, results, mode):
        function = pytensor.function(
            list(self.values), results, mode=mode, on_unused_input="ignore"
        )
        return function(*self.values.values())


COSTS = {
    "a product": lambda m: (m.dot(m.W) ** 2).sum(),
    "transposed": lambda m: (m.transposed_dot(m.W) ** 2).sum(),
    "both, and both again": lambda m: (
        (m.dot(m.W) ** 2).sum()
        + pt.tanh(m.transposed_dot(m.W)).sum()
        + sparse_block_dot(m.W, m.transposed_dot(m.W), m.i, None, m.j).sum()
    ),
    "cast": lambda m: (m.dot(m.W.astype("float32")) ** 2).sum(),
    "of known shape": lambda m: m.dot(pt.specify_shape(m.W, (5, 4, 3, 2))).sum(),
    "its size, too": lambda m: (m.dot(m.W) ** 2).sum() / m.W.size,
    "what is not derived": lambda m: (
        m.dot(m.W).sum() * pytensor.gradient.disconnected_grad((m.W**2).sum())
    ),
}


@pytest.mark.parametrize("mode", ["FAST_COMPILE", "NUMBA"])
@pytest.mark.parametrize("name", COSTS)
def test_block_gradient_is_the_dense_one(name, mode):
    m = Model()
    cost = COSTS[name](m)
    gradient = block_gradient(cost, m.W)
    dense = pytensor.grad(cost, m.W)
    run = mode if mode == "NUMBA" and name.startswith("both") else in_python(mode)
    inputBlock, outputBlock, values, again, dense = m.eval(
        [*gradient, gradient.dense(m.W.shape), dense], run
    )
    assert values.dtype == m.W.dtype
    np.testing.assert_allclose(again, dense, 1e-5)
    np.testing.assert_allclose(values, dense[inputBlock, outputBlock], 1e-5)
    numbers = inputBlock * SIZES.oBlocks + outputBlock
    assert (np.diff(numbers) > 0).all()


def test_weights_of_one_input_block():
    m = Model()
    W = pytensor.shared(m.W.get_value()[0], "W")
    cost = (sparse_block_dot(W[None], m.h, pt.zeros_like(m.i), None, m.j) ** 2).sum()
    gradient = block_gradient(cost, W)
    *blocks, values, again, dense = m.eval(
        [*gradient, gradient.dense(W.shape), pytensor.grad(cost, W)], in_python("NUMBA")
    )
    np.testing.assert_allclose(again, dense)
    np.testing.assert_allclose(values, dense[blocks[1]])
    assert not blocks[0].any()


TABLES = {
    "a bias": lambda m: (m.dot(m.W, m.b) ** 2).sum(),
    "taken twice": lambda m: (
        (sparse_block_take(m.b, m.j) ** 2).sum() + sparse_block_take(m.b, m.j[0]).sum()
    ),
}


@pytest.mark.parametrize("name", TABLES)
def test_a_table(name):
    m = Model()
    cost = TABLES[name](m)
    gradient = block_gradient(cost, m.b)
    dense = pytensor.grad(cost, m.b)
    inputBlock, rows, values, again, dense = m.eval(
        [*gradient, gradient.dense(m.b.shape), dense], in_python("NUMBA")
    )
    np.testing.assert_allclose(again, dense)
    np.testing.assert_allclose(values[:, 0], dense[rows])
    assert (inputBlock == 0).all()
    np.testing.assert_array_equal(rows, np.unique(m.values[m.j] % SIZES.oBlocks))


def test_stacked_layers_each_have_one():
    m = Model()
    layers = pytensor.shared(np.stack([m.W.get_value()] * 2), "layers")
    first = layers[0]
    gradient = block_gradient(m.dot(first).sum() + (m.dot(layers[1]) ** 2).sum(), first)
    dense = m.eval(gradient.dense(first.shape), in_python("NUMBA"))
    expected = m.eval(pytensor.grad(m.dot(m.W).sum(), m.W), in_python("NUMBA"))
    np.testing.assert_allclose(dense, expected)


DENSE_USES = {
    "in an elementwise op": (lambda m: m.dot(m.W).sum() + (m.W**2).sum(), "Mul|Pow|Sqr|pow|sqr"),
    "as what is added to": (
        lambda m: pytensor.grad(m.dot(m.W).sum(), m.h).sum() * (m.W - m.W).sum(), "Sub|sub"
    ),
    "rounded": (lambda m: m.dot(m.W.astype("int64")).sum(), "Cast"),
    "of other blocks": (lambda m: m.dot(m.W.transpose(0, 1, 3, 2)).sum(), "SparseBlockGemv"),
    "as a product's factor": (
        lambda m: sparse_block_gemv(m.g, m.W, m.W[:, 0, :2], m.i[:, :1], m.j).sum(), "Subtensor"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DENSE_USES)
def test_other_uses_are_told(name):
    build, op = DENSE_USES[name]
    m = Model()
    with pytest.raises(ValueError, match=rf"the cost uses W in \S*({op}).*use pytensor.grad"):
        block_gradient(build(m), m.W)


def test_what_has_no_such_gradient():
    m = Model()
    with pytest.raises(ValueError, match="the cost has no block-sparse product of W"):
        block_gradient(m.h.sum(), m.W)
    with pytest.raises(TypeError, match="W has 1 dimensions; expected"):
        block_gradient(m.dot(m.W).sum(), m.i[0])
    with pytest.raises(TypeError, match=r"W is <class 'numpy\.ndarray'>; expected"):
        block_gradient(m.dot(m.W).sum(), np.ones((2, 2, 2, 2)))
    gradient = block_gradient(m.dot(m.W).sum(), m.W)
    with pytest.raises(ValueError, match=r"BlockGradient.dense: shape is \(1,\)"):
        gradient.dense((1,))


def test_derivatives():
    """Of values, and a gradient penalty: as those of the dense gradient."""
    draw = Draw(SIZES, 2, "float64")
    W, x, y, xIdx, yIdx, alpha = draw.outer().values()

    def weighted(x, y, alpha):
        blocks = SparseBlockGradient()(W, x, y, xIdx, yIdx, alpha)
        return BlockGradient(*blocks).dense(W.shape)

    verify_grad(weighted, [x, y, alpha], rng=np.random.default_rng(0), mode=in_python("NUMBA"))
    m = Model()
    cost = COSTS["a product"](m)
    values, dense = block_gradient(cost, m.W).values, pytensor.grad(cost, m.W)
    penalties = [(values**2).sum(), (dense**2).sum()]
    sparse, expected = m.eval(
        [pytensor.grad(penalty, m.h) for penalty in penalties], in_python("FAST_COMPILE")
    )
    np.testing.assert_allclose(sparse, expected)
    tangent = pt.ones_like(m.h)
    for forward in (False, True):
        sparse, expected = m.eval(
            [Rop(x, m.h, tangent, use_op_rop_implementation=forward) for x in penalties],
            in_python("FAST_COMPILE"),
        )
        np.testing.assert_allclose(sparse, expected)


def test_shapes_are_known_without_values():
    m = Model()
    gradient = block_gradient(m.dot(m.W).sum(), m.W)
    f = pytensor.function([m.h, m.i, m.j], gradient.values.shape[1:], mode="FAST_RUN")
    assert not any("Gradient" in str(node.op) for node in f.maker.fgraph.apply_nodes)
    assert gradient.values.type.shape == (None, None, None)


def test_sums_of_gradients_in_no_weights():
    """Where there are no blocks, none is in use."""
    W = pt.zeros((0, 0, 3, 2))
    none = SparseBlockGradient()(
        W, np.ones((0, 1, 3)), np.ones((0, 1, 2)), *np.ones((2, 0, 1), int)
    )
    gradient = merged([BlockGradient(*none)] * 2, W.shape[1])
    assert [x.shape for x in pytensor.function([], list(gradient))()] == [(0,), (0,), (0, 3, 2)]


@pytest.mark.parametrize("mode", ARRAY_MODES)
def test_libraries_say_what_to_do(mode):
    m = Model()
    gradient = block_gradient(m.dot(m.W).sum(), m.W)
    with pytest.raises(NotImplementedError, match="Compile in mode NUMBA or CVM"):
        m.eval(gradient.values, mode)
