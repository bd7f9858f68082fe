"""Indices that name no block: what they may be, what is refused, and what stays untouched.

Values, derivatives and threads are tested where those of all indices are.
"""

import re
from dataclasses import replace

import numpy as np
import oracle
import pytensor
import pytensor.tensor as pt
import pytest
from cases import ALL_MODES, COMPILED_LAYOUTS, MODES, Draw, Sizes, in_python, symbols
from pytensor.graph.replace import vectorize_graph
from test_values import compiled

from blocksparse_ops import (
    SparseBlockGemv,
    SparseBlockOuter,
    block_gradient,
    sparse_block_dot,
    sparse_block_take,
)
from blocksparse_ops.part import SparseBlockOuterInPart
from blocksparse_ops.zeros import zeros_like

SIZES = Sizes(iBlocks=5, oBlocks=4, iSize=3, oSize=2, iWin=3, oWin=2, batch=6)
PADDED = replace(COMPILED_LAYOUTS[0], padding_idx=-1)


# Of the first of these seeds all places are padded, of the second some on either side.
NOTHING, SOME = 0, 4


def draw(padding_idx, seed=SOME, dtype="float64"):
    return Draw(SIZES, seed, dtype, padding_idx=padding_idx)


@pytest.mark.parametrize("value", [True, 1.0, "-1", np.array([1])])
def test_it_is_an_integer(value):
    told = re.escape(f"padding_idx is {value!r}; expected None or an integer")
    for build in (
        lambda: SparseBlockGemv(padding_idx=value),
        lambda: SparseBlockOuter(padding_idx=value),
        lambda: sparse_block_dot(**draw(None).dot(), padding_idx=value),
        lambda: sparse_block_take(np.ones((3, 2)), [0], padding_idx=value),
    ):
        with pytest.raises(TypeError, match=told):
            build()


@pytest.mark.parametrize(
    ("dtype", "value"), [("uint8", -1), ("uint64", -1), ("int8", 128), ("int64", 2**63)]
)
def test_an_index_must_be_able_to_hold_it(dtype, value):
    told = f"inputIdx has dtype {dtype}, which cannot hold padding_idx = {value}. Cast the index"
    arrays = Draw(SIZES, 0, "float64", (dtype, "int64")).dot()
    with pytest.raises(TypeError, match=told):
        sparse_block_dot(**arrays, padding_idx=value)
    arrays = Draw(SIZES, 0, "float64", (dtype, "int64")).gemv()
    with pytest.raises(TypeError, match="SparseBlockGemv: " + told):
        SparseBlockGemv(padding_idx=value)(**arrays)


@pytest.mark.parametrize(("dtype", "value"), [("int8", -128), ("int8", 127), ("uint64", 2**64 - 1)])
def test_it_may_be_the_last_that_an_index_holds(dtype, value):
    arrays = Draw(SIZES, 0, "float64", (dtype, dtype), padding_idx=value).dot()
    actual = sparse_block_dot(**arrays, padding_idx=value).eval(mode="FAST_COMPILE")
    oracle.assert_within_bound(actual, oracle.dot(**arrays, padding_idx=value))
    rows = sparse_block_take(np.ones((2, 3)), np.array([1, value], dtype), padding_idx=value)
    np.testing.assert_array_equal(rows.eval(mode="FAST_COMPILE"), [[1, 1, 1], [0, 0, 0]])


@pytest.mark.parametrize("mode", MODES)
def test_errors_name_it(mode):
    arrays = draw(-1, dtype="float32").gemv()
    arrays["inputIdx"][2, 1] = 9
    told = r"inputIdx\[2, 1\] = 9 is out of range: .* in \[-5, 5\), or be padding_idx = -1 \("
    with pytest.raises(IndexError, match=told):
        compiled(mode, "gemv", PADDED, "float32")(*arrays.values())


def test_a_constant_is_checked_when_the_graph_is_built():
    arrays = draw(9).dot()
    sparse_block_dot(**arrays, padding_idx=9)
    with pytest.raises(IndexError, match=r"= 9 is out of range: .*or be padding_idx = 8"):
        sparse_block_dot(**arrays, padding_idx=8)
    with pytest.raises(IndexError, match=r"= 9 is out of range: .*or be padding_idx = 8"):
        sparse_block_take(np.ones((3, 2)), [8, 9], padding_idx=8)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("blocks", [0, 2])
def test_a_batch_of_nothing_but_padding(mode, blocks):
    """There need be no block: nothing is read, and what is added to is kept to the bit."""
    arrays = Draw(replace(SIZES, iBlocks=2, oBlocks=2), 0, "float32").gemv()
    arrays["W"] = arrays["W"][:blocks, :blocks] * np.nan
    arrays["inputIdx"][:] = arrays["outputIdx"][:] = -1
    arrays["o"][0], arrays["o"][1] = -0.0, np.nan
    actual = compiled(mode, "gemv", PADDED, "float32")(*arrays.values())
    assert actual.tobytes() == arrays["o"].tobytes()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("window", [63, 64, 65, 130])
def test_windows_longer_than_the_bits_of_a_word(mode, window):
    sizes = replace(SIZES, iWin=window)
    arrays = Draw(sizes, SOME, "float32", padding_idx=-1).gemv()
    actual = compiled(mode, "gemv", PADDED, "float32")(*arrays.values())
    oracle.assert_within_bound(actual, oracle.gemv(**arrays, padding_idx=-1))


@pytest.mark.parametrize("mode", ALL_MODES)
def test_what_stands_at_padding_has_no_gradient(mode):
    """Whatever it is; nor has it a part in that of a bias, or of a scale."""
    arrays = draw(1).dot()
    inputs = symbols(arrays, is_static=True)
    product = sparse_block_dot(**inputs, padding_idx=1)
    wrt = [inputs[name] for name in ("h", "b")]
    of_h, of_b = pytensor.function(
        list(inputs.values()), pt.grad((product + product**2).sum(), wrt), mode=mode
    )(*arrays.values())
    is_padded = arrays["inputIdx"] == 1
    assert 0 < is_padded.sum() < is_padded.size
    np.testing.assert_array_equal(np.asarray(of_h)[is_padded], 0)
    assert np.isfinite(of_h).all()
    rows, *_ = oracle.dot(**arrays, padding_idx=1)
    expected = np.zeros(arrays["b"].shape)
    for place, j in np.ndenumerate(arrays["outputIdx"]):
        expected[j] += (1 + 2 * rows[place].astype(float)) * (j != 1)
    np.testing.assert_allclose(of_b, expected, 1e-4)


@pytest.mark.parametrize("mode", ["FAST_COMPILE", *ALL_MODES[len(MODES) :]])
def test_the_gradient_in_a_scale_does_not_see_it(mode):
    arrays = draw(1).outer()
    inputs = symbols(arrays, is_static=True)
    result = SparseBlockOuter(padding_idx=1)(**inputs)
    gradient = pt.grad((result**2).sum(), inputs["alpha"])
    actual = pytensor.function(list(inputs.values()), gradient, mode=mode)(*arrays.values())
    alone, *_ = oracle.outer(**arrays | {"o": 0 * arrays["o"], "alpha": 1}, padding_idx=1)
    expected = (2 * (arrays["o"] + arrays["alpha"] * alone) * alone).sum()
    np.testing.assert_allclose(actual, float(expected), rtol=1e-5)


class Training:
    """Weights and biases of two layers, of which one has padded windows."""

    def __init__(self, seed=SOME):
        draws = [draw(-1, seed).dot(), draw(None, 1).dot()]
        self.W, self.b = (pytensor.shared(draws[0][name].copy(), name) for name in "Wb")
        self.inputs, self.values, self.products = [], [], []
        for arrays, padding in zip(draws, (-1, None), strict=True):
            inputs = symbols({k: v for k, v in arrays.items() if k not in "Wb"})
            self.inputs += inputs.values()
            self.values += (arrays[name] for name in inputs)
            self.products.append(
                sparse_block_dot(W=self.W, b=self.b, **inputs, padding_idx=padding)
            )

    def step(self, cost):
        return {x: x - 0.1 * pt.grad(cost, x) for x in (self.W, self.b)}

    def after(self, updates, mode):
        """The parameters after a step, and the function; they are set back."""
        before = [x.get_value() for x in (self.W, self.b)]
        function = pytensor.function(
            self.inputs, updates=updates, mode=mode, on_unused_input="ignore"
        )
        function(*self.values)
        after = [x.get_value() for x in (self.W, self.b)]
        for x, value in zip((self.W, self.b), before, strict=True):
            x.set_value(value)
        return after, function


@pytest.mark.parametrize("products", [slice(0, 1), slice(0, 2)], ids=["alone", "with another"])
@pytest.mark.parametrize("mode", MODES[1:])
def test_a_step_is_in_place(mode, products):
    """Merged with the gradient of a product that has no padding, too."""
    training = Training()
    chosen = training.products[products]
    updates = training.step(sum((y**2).sum() for y in chosen))
    expected, _ = training.after(updates, "FAST_COMPILE")
    actual, function = training.after(updates, mode)
    for one, other in zip(actual, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12)
    nodes = function.maker.fgraph.apply_nodes
    steps = [n.op for n in nodes if isinstance(n.op, SparseBlockOuter) and n.op.inplace]
    kinds = [-1, None][products]
    assert sorted(map(str, steps)) == sorted(
        str(SparseBlockOuter(inplace=True, padding_idx=kind)) for kind in [*kinds, *kinds]
    )


def test_a_step_in_a_part():
    stacked = pytensor.shared(np.stack([draw(1).dot()["W"]] * 2))
    arrays = draw(1).dot()
    del arrays["W"], arrays["b"]
    inputs = symbols(arrays)
    product = sparse_block_dot(W=stacked[1], b=None, **inputs, padding_idx=1)
    updates = {stacked: stacked - 0.1 * pt.grad((product**2).sum(), stacked)}
    results = []
    for mode in ("FAST_COMPILE", in_python("NUMBA")):
        before = stacked.get_value()
        function = pytensor.function(list(inputs.values()), updates=updates, mode=mode)
        function(*arrays.values())
        results.append(stacked.get_value())
        stacked.set_value(before)
    np.testing.assert_allclose(*results, rtol=1e-12)
    assert SparseBlockOuterInPart(padding_idx=1) in [
        node.op for node in function.maker.fgraph.apply_nodes
    ]


def test_a_gradient_by_blocks_and_its_norm():
    """Of a product that is padded and one that is not: only what is named is in use."""
    training = Training()
    cost = sum((y**2).sum() for y in training.products)
    gradient, dense = block_gradient(cost, training.W), pt.grad(cost, training.W)
    outputs = [gradient.inputBlock, gradient.outputBlock, gradient.values, dense]
    outputs += [(dense**2).sum()]
    function = pytensor.function(training.inputs, outputs, mode=in_python("NUMBA"))
    i, j, values, dense, squared_norm = function(*training.values)
    named = {
        (a % 5, b % 4)
        for k, padding in ((0, -1), (3, None))
        for one, other in zip(training.values[k + 1], training.values[k + 2], strict=True)
        for a in one
        for b in other
        if padding not in (a, b)
    }
    assert set(zip(i.tolist(), j.tolist(), strict=True)) == named
    np.testing.assert_allclose(values, dense[i, j])
    np.testing.assert_allclose(squared_norm, (dense**2).sum())


@pytest.mark.parametrize("seed", [NOTHING, SOME], ids=["nothing", "some"])
def test_a_clipped_step_has_no_dense_gradient(seed):
    training = Training(seed)
    gradient = pt.grad((training.products[0] ** 2).sum(), training.W)
    scale = pt.minimum(1, 0.5 / pt.sqrt(1 + (gradient**2).sum()))
    updates = {training.W: training.W - 0.1 * scale * gradient}
    expected, _ = training.after(updates, "FAST_COMPILE")
    actual, function = training.after(updates, in_python("NUMBA"))
    np.testing.assert_allclose(actual[0], expected[0], rtol=1e-12)
    outers = [
        node.op
        for node in function.maker.fgraph.apply_nodes
        if isinstance(node.op, SparseBlockOuter)
    ]
    assert outers == [SparseBlockOuter(inplace=True, padding_idx=-1)]


@pytest.mark.parametrize("batched", ["W", "h", "inputIdx"])
def test_vectorize(batched):
    draws = [
        {name: np.nan_to_num(a) for name, a in draw(1, seed).dot().items()}
        for seed in (SOME, SOME + 1)
    ]
    inputs = symbols(draws[0])
    many = np.stack([d[batched] for d in draws])
    given = pt.tensor(dtype=many.dtype, shape=(None,) * many.ndim)
    product = vectorize_graph(sparse_block_dot(**inputs, padding_idx=1), {inputs[batched]: given})
    variables = [given if name == batched else x for name, x in inputs.items()]
    values = [many if name == batched else a for name, a in draws[0].items()]
    actual = pytensor.function(variables, product, mode=in_python("NUMBA"))(*values)
    for one, of_batch in zip(actual, many, strict=True):
        arrays = draws[0] | {batched: of_batch}
        expected, *others = oracle.dot(**arrays, padding_idx=1)
        oracle.assert_within_bound(one, (expected, *others))


@pytest.mark.parametrize("padding_idx", [-1, 0, 1])
def test_the_only_block_of_a_bias_is_never_padding(padding_idx):
    """Rows of a table are a product with an input block, whose number no one gives."""
    table = np.arange(6.0).reshape(3, 2)
    index = np.array([[0, 1, 2, padding_idx]])
    rows = sparse_block_take(table, index, padding_idx).eval(mode="FAST_COMPILE")
    np.testing.assert_array_equal(rows, table[index] * (index != padding_idx)[..., None])


def test_folded_constants():
    arrays = draw(1).gemv()
    op = SparseBlockGemv(padding_idx=1)
    function = pytensor.function([], op(*map(pt.constant, arrays.values())), mode="FAST_COMPILE")
    oracle.assert_within_bound(function(), oracle.gemv(**arrays, padding_idx=1))


def test_outers_that_are_padded_by_other_indices_stay_apart():
    arrays = {name: np.nan_to_num(a) for name, a in draw(1).outer().items()}
    inputs = symbols(arrays)
    o, *factors = inputs.values()
    ops = SparseBlockOuter(), SparseBlockOuter(padding_idx=1)
    total = o - sum(op(zeros_like(o), *factors) for op in ops)
    function = pytensor.function(list(inputs.values()), total, mode=in_python("NUMBA"))
    expected = [arrays["o"]]
    for padding_idx in (None, 1):
        negative = arrays | {"o": expected[0], "alpha": -arrays["alpha"]}
        expected = oracle.outer(**negative, padding_idx=padding_idx)
    actual = function(*arrays.values())
    np.testing.assert_allclose(actual, expected[0].astype(float), 1e-12, 1e-12)
    assert (
        len([n for n in function.maker.fgraph.apply_nodes if type(n.op) is SparseBlockOuter]) == 2
    )
