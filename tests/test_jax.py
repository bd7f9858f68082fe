"""What JAX adds to the tests that all backends share: its own derivatives and its limits."""

import os
import subprocess
import sys
from functools import partial
from itertools import product

import numpy as np
import oracle
import pytensor
import pytensor.tensor as pt
import pytest
from cases import Draw, Sizes, symbols
from test_values import LibraryValues

from blocksparse_ops import SparseBlockGemv, SparseBlockOuter, sparse_block_dot, sparse_block_gemv

jax = pytest.importorskip("jax")
kernels = pytest.importorskip("blocksparse_ops.kernels.jax_steps")
gathered = pytest.importorskip("blocksparse_ops.kernels.jax_gathered")

# The triples as they stand, and sorted by block.
SIZES = [Sizes(3, 4, 5, 6, 2, 3, 4), Sizes(1, 2, 3, 2, 3, 2, 3)]


class TestJax(LibraryValues):
    mode = "JAX"


class TestJaxInSteps(LibraryValues):
    """Where blocks are too many to be gathered at once: sorted, and some examples a step."""

    mode = "JAX"

    @pytest.fixture(autouse=True)
    def few_at_once(self, monkeypatch):
        monkeypatch.setattr(gathered, "GATHERED_BYTES", 0)
        monkeypatch.setattr(gathered, "SORTED_BLOCK", 0)
        jax.clear_caches()
        yield
        jax.clear_caches()


def jaxified(inputs, outputs):
    """The function that PyTensor made for JAX, without its own wrapper."""
    return pytensor.function(inputs, outputs, mode="JAX").vm.jit_fn


def dot_of(sizes, padding_idx=None):
    """sparse_block_dot as a function of JAX arrays, and these by name."""
    arrays = Draw(sizes, 0, "float64", padding_idx=padding_idx).dot()
    inputs = symbols(arrays)
    function = jaxified(list(inputs.values()), sparse_block_dot(**inputs, padding_idx=padding_idx))
    return lambda *values: function(*values)[0], arrays


NO_INDEX = 100


def gather_dot(W, h, inputIdx, b, outputIdx, padding_idx=None):
    """What JAX differentiates by itself."""
    padding = NO_INDEX if padding_idx is None else padding_idx
    named = inputIdx != padding, outputIdx != padding
    i, j = (jax.numpy.where(*pair, 0) for pair in zip(named, (inputIdx, outputIdx), strict=True))
    blocks = W[i[:, :, None], j[:, None, :]]
    h = jax.numpy.where(named[0][:, :, None], h, 0)
    rows = b[j] + jax.numpy.einsum("nvp,nvwpq->nwq", h, blocks)
    return jax.numpy.where(named[1][:, :, None], rows, 0)


def assert_trees_close(actual, expected):
    jax.tree.map(
        lambda one, other: np.testing.assert_allclose(one, other, 1e-9, 1e-9), actual, expected
    )


FLOATS = (0, 1, 3)  # W, h and b among the arguments of a dot


@pytest.mark.parametrize("sizes", SIZES, ids=["as they stand", "sorted"])
def test_grad_equals_pytensors(sizes):
    function, arrays = dot_of(sizes)
    inputs = symbols(arrays)
    cost = (sparse_block_dot(**inputs) ** 3).sum()
    gradients = pt.grad(cost, [inputs[name] for name in ("W", "h", "b")])
    expected = pytensor.function(list(inputs.values()), gradients, mode="JAX")(*arrays.values())
    actual = jax.grad(lambda *values: (function(*values) ** 3).sum(), FLOATS)(*arrays.values())
    assert_trees_close(list(actual), list(expected))


TRANSFORMATIONS = {
    "jit of grad": lambda f: jax.jit(jax.grad(lambda *x: (f(*x) ** 3).sum(), FLOATS)),
    "jacfwd": lambda f: jax.jacfwd(f, FLOATS),
    "hessian": lambda f: jax.jit(jax.hessian(lambda *x: (f(*x) ** 3).sum(), FLOATS)),
}


@pytest.mark.parametrize("name", TRANSFORMATIONS)
@pytest.mark.parametrize(
    ("sizes", "padding_idx"),
    [(SIZES[0], None), (SIZES[1], None), (SIZES[0], 1)],
    ids=["as they stand", "sorted", "padded"],
)
def test_derivatives_by_jax(sizes, padding_idx, name):
    function, arrays = dot_of(sizes, padding_idx)
    transform = TRANSFORMATIONS[name]
    values = [jax.numpy.asarray(a) for a in arrays.values()]
    gathered = partial(gather_dot, padding_idx=padding_idx)
    assert_trees_close(transform(function)(*values), transform(gathered)(*values))


@pytest.mark.parametrize(
    ("mapped", "padding_idx"),
    [((0,), None), ((0,), 1), ((1, 4), None), ((0, 1, 2, 3, 4), None), ((0, 1, 2, 3, 4), 1)],
)
@pytest.mark.parametrize(
    "transform", [lambda f: f, TRANSFORMATIONS["jit of grad"]], ids=["", "grad"]
)
def test_vmap(transform, mapped, padding_idx):
    """Over any of the arguments, weights and indices too; negative indices count as ever."""
    function, _ = dot_of(SIZES[0], padding_idx)
    draws = [
        list(Draw(SIZES[0], seed, "float64", padding_idx=padding_idx).dot().values())
        for seed in range(3)
    ]
    values = [
        np.stack([draw[k] for draw in draws]) if k in mapped else draws[0][k] for k in range(5)
    ]
    axes = tuple(0 if k in mapped else None for k in range(5))
    actual = jax.vmap(transform(function), axes)(*values)
    for one in range(3):
        single = [value[one] if k in mapped else value for k, value in enumerate(values)]
        item = jax.tree.map(lambda x, one=one: x[one], actual)
        assert_trees_close(item, transform(function)(*single))


def test_vmap_over_weights_keeps_a_wrong_index_apart():
    function, arrays = dot_of(SIZES[0])
    arrays["inputIdx"][1, 0] = SIZES[0].iBlocks
    stacked = np.stack([arrays["W"]] * 2)
    axes = (0, None, None, None, None)
    out = jax.vmap(function, axes)(stacked, *list(arrays.values())[1:])
    np.testing.assert_array_equal(np.isnan(out).any((0, 2, 3)), [False, True, False, False])


@pytest.mark.parametrize("padding_idx", [None, 1])
def test_derivatives_of_an_outer_by_jax(padding_idx):
    arrays = Draw(SIZES[0], 0, "float64", padding_idx=padding_idx).outer()
    inputs = symbols(arrays)
    op = SparseBlockOuter(padding_idx=padding_idx)
    function = jaxified(list(inputs.values()), op(**inputs))

    padding = NO_INDEX if padding_idx is None else padding_idx

    def scattered(o, x, y, xIdx, yIdx, alpha):
        x, y = (
            jax.numpy.where((index != padding)[:, :, None], values, 0)
            for values, index in ((x, xIdx), (y, yIdx))
        )
        products = alpha * jax.numpy.einsum("nvp,nwq->nvwpq", x, y)
        return o.at[xIdx[:, :, None], yIdx[:, None, :]].add(products)

    def hessian(f):
        return jax.hessian(lambda *values: (f(*values) ** 3).sum(), (0, 1, 2, 5))

    values = [jax.numpy.asarray(a) for a in arrays.values()]
    actual = hessian(lambda *values: function(*values)[0])(*values)
    assert_trees_close(actual, hessian(scattered)(*values))


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("elements", [1, 60, 200, 1000])
@pytest.mark.parametrize("inputs", [5, 6])
def test_windows_that_a_step_does_not_hold(monkeypatch, elements, inputs, transposed):
    """They are cut where their inputs divide; the last step may have fewer than the others."""
    for module in (kernels, gathered):
        monkeypatch.setattr(module, "WINDOW_ELEMENTS", elements)
    monkeypatch.setattr(gathered, "GATHERED_BYTES", 0)
    arrays = Draw(Sizes(4, 5, 5, 6, inputs, 3, 3), 0, "float64", integers=True).gemv()
    o, W, *others = map(jax.numpy.asarray, arrays.values())
    W = W.transpose(1, 0, 3, 2) if transposed else W
    result = kernels.gemv_in_steps(o, W, *others, transposed=transposed)
    np.testing.assert_array_equal(result, oracle.gemv(*arrays.values())[0])


def test_weights_are_read_where_they_lie():
    """The gradient in h has transposed weights; XLA makes no copy of them."""
    arrays = Draw(SIZES[0], 0, "float64").dot()
    inputs = symbols(arrays)
    gradient = pt.grad(sparse_block_dot(**inputs).sum(), inputs["h"])
    function = pytensor.function(
        list(inputs.values()), gradient, mode="JAX", on_unused_input="ignore"
    )
    values = [jax.numpy.asarray(a) for a in arrays.values()]
    text = jax.jit(function.vm.jit_fn).lower(*values).compile().as_text()
    shape = ",".join(str(arrays["W"].shape[axis]) for axis in (1, 0, 3, 2))
    assert any(isinstance(node.op, SparseBlockGemv) for node in function.maker.fgraph.apply_nodes)
    assert f"f64[{shape}]" not in text


@pytest.mark.parametrize("most", [1, 4000, 1 << 30])
def test_on_a_gpu_blocks_are_gathered_whatever_their_size(monkeypatch, most):
    """Some examples at a time where all would take too much: nothing is sorted."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(gathered, "GATHERED_BYTES_OF_GPU", most)
    arrays = Draw(Sizes(2, 2, 17, 16, 2, 1, 9), 0, "float32", integers=True)
    for run, problem, expect in (
        (partial(kernels.gemv_in_steps, transposed=False), arrays.gemv(), oracle.gemv),
        (kernels.outer_in_steps, arrays.outer() | {"alpha": np.float32(1)}, oracle.outer),
    ):
        values = [jax.numpy.asarray(a) for a in problem.values()][:5]
        assert "stablehlo.sort" not in jax.jit(run).lower(*values).as_text()
        np.testing.assert_array_equal(run(*values), expect(*problem.values())[0])


@pytest.mark.parametrize("of_step", [1, 2, 3, 7])
def test_some_examples_a_step(of_step):
    """The last step may have some in common with the one before."""
    arrays = Draw(Sizes(3, 4, 5, 6, 2, 3, 7), 0, "float64", integers=True)
    gemv, outer = arrays.gemv(), arrays.outer()
    o, W, h, i, j = (jax.numpy.asarray(a) for a in gemv.values())
    i, j = kernels.counted(i, 3), kernels.counted(j, 4)
    result = gathered.gemv_by_example(o, W, h, i, j, of_step, False, False)
    np.testing.assert_array_equal(result, oracle.gemv(*gemv.values())[0])
    o, x, y, i, j, _ = (jax.numpy.asarray(a) for a in outer.values())
    result = gathered.outer_by_example(
        o, x, y, kernels.counted(i, 3), kernels.counted(j, 4), of_step
    )
    outer["alpha"] = np.float64(1)
    np.testing.assert_array_equal(result, oracle.outer(*outer.values())[0])


@pytest.mark.parametrize(("windows", "iSize", "oSize", "is_written_out"), [
    (16, 1, 3, True), (17, 1, 3, False), (17, 1, 1, False),
    (4, 4, 1, True), (1, 16, 1, True), (1, 17, 1, False), (4, 4, 2, False),
])  # fmt: skip
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.usefixtures("on_cpu")
def test_sums_that_are_written_out(windows, iSize, oSize, is_written_out, transposed):
    """Of 16 products at the most, of numbers or with them; transposed, numbers must come out."""
    arrays = Draw(Sizes(3, 4, iSize, oSize, windows, 2, 5), 0, "float32", integers=True).gemv()
    o, W, *others = (jax.numpy.asarray(a) for a in arrays.values())
    W = W.transpose(1, 0, 3, 2) if transposed else W
    run = jax.jit(partial(kernels.gemv_in_steps, transposed=transposed))
    has_dot = "dot_general" in run.lower(o, W, *others).as_text()
    assert has_dot != (is_written_out and (oSize == 1 or not transposed))
    np.testing.assert_array_equal(run(o, W, *others), oracle.gemv(*arrays.values())[0])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("windows", [1, 3])
@pytest.mark.usefixtures("on_cpu")
def test_columns_that_fill_no_vector(dtype, windows):
    """On a CPU zeros are gathered with them, and what those give is left out, not a number here."""
    lanes = gathered.LANES[dtype]
    for iSize, oSize in product([1, 3, 4], {2, 3, lanes - 1, lanes}):
        arrays = Draw(Sizes(3, 4, iSize, oSize, windows, 2, 5), 0, dtype, integers=True).gemv()
        arrays["h"][0] = np.inf
        arrays["W"] = abs(arrays["W"]) + 1
        with jax.enable_x64(True):
            values = [jax.numpy.asarray(a) for a in arrays.values()]
            columns = gathered.columns_to_gather(values[1], windows)
            result = kernels.gemv_in_steps(*values, transposed=False)
        is_filled = 3 <= oSize < lanes and windows * iSize >= 4
        assert columns == (lanes if is_filled else oSize)
        scattered = jax.ShapeDtypeStruct((1 << 20, 4, iSize, oSize), dtype)
        assert gathered.columns_to_gather(scattered, windows) == oSize
        np.testing.assert_array_equal(result, oracle.gemv(*arrays.values())[0])


def test_constant_indices_are_not_sorted_by_xla():
    """Nor are those of a gradient that JAX makes."""
    sizes = Sizes(2, 2, 16, 16, 2, 2, 5000)
    arrays = Draw(sizes, 0, "float32").dot()
    assert sizes.batch * 2 * 2 * 16 * 16 * 4 > gathered.GATHERED_BYTES
    values = [arrays["W"], arrays["h"]]
    W, h = symbols({"W": values[0], "h": values[1]}).values()
    function = jaxified(
        [W, h], sparse_block_dot(W, h, arrays["inputIdx"], None, arrays["outputIdx"])
    )
    gradient = jax.jit(jax.grad(lambda *values: (function(*values)[0] ** 2).sum(), (0, 1)))
    text = gradient.lower(*values).as_text()
    assert "stablehlo.sort" not in text


@pytest.mark.parametrize("windows", ["all blocks", "some", "repeated and negative"])
def test_constant_windows_that_all_examples_share(windows):
    """A dense product; its gradients, by PyTensor and by JAX, too."""
    sizes = Sizes(3, 4, 5, 6, 3, 4, 7)
    arrays = Draw(sizes, 0, "float64").dot()
    window = {
        "all blocks": (np.arange(3), np.arange(4)),
        "some": (np.array([2, 0]), np.array([1])),
        "repeated and negative": (np.array([2, -1, 0]), np.array([1, -3, 0])),
    }[windows]
    inputIdx, outputIdx = (np.tile(index, (sizes.batch, 1)) for index in window)
    arrays["h"] = arrays["h"][:, : len(window[0])]
    W, h = symbols({name: arrays[name] for name in ("W", "h")}).values()
    out = sparse_block_dot(W, h, inputIdx, None, outputIdx)
    loss = (out**2).sum()
    outputs = [out, *pt.grad(loss, [W, h])]
    values = arrays["W"], arrays["h"]
    expected = pytensor.function([W, h], outputs, mode="FAST_COMPILE")(*values)
    function = pytensor.function([W, h], outputs, mode="JAX")
    text = jax.jit(function.vm.jit_fn).lower(*values).as_text()
    assert "stablehlo.dot_general" in text
    assert "stablehlo.while" not in text
    for one, other in zip(function(*values), expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9)
    computed = jaxified([W, h], loss)
    gradients = jax.grad(lambda *values: computed(*values)[0], (0, 1))
    for one, other in zip(gradients(*values), expected[1:], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9)


def test_a_shared_window_out_of_range_is_told_as_any():
    W, h = pt.dtensor4("W"), pt.dtensor3("h")
    indices = np.full((2, 1), 3), np.zeros((2, 1), int)
    out = sparse_block_dot(W, h, indices[0], None, indices[1])
    function = pytensor.function([W, h], out, mode="JAX")
    assert np.isnan(function(np.ones((3, 1, 1, 1)), np.ones((2, 1, 1)))).all()


WITHOUT_X64 = """
import numpy as np, pytensor.tensor as pt, pytensor
from blocksparse_ops import sparse_block_dot
W, h = pt.ftensor4(), pt.ftensor3()
weights, ones = np.full((2, 2, 1, 1), 3, "float32"), np.ones((1, 1, 1), "float32")
zeros = np.zeros((1, 1), "int64")
cases = ("int32", 2**30), ("uint32", 2**32 - 1), ("int64", 2**31 - 1), ("int64", 2**32)
for dtype, wrong in cases:
    inputIdx, outputIdx = pt.tensor(dtype=dtype, shape=(None, None)), pt.lmatrix()
    f = pytensor.function([W, h, inputIdx, outputIdx],
                          sparse_block_dot(W, h, inputIdx, None, outputIdx), mode="JAX")
    print(f(weights, ones, np.array([[wrong]], dtype), zeros)[0, 0, 0])
"""


def test_without_64_bits_a_larger_index_is_cut():
    """JAX cuts it before the graph sees it: what the docs say cannot be helped. All else is NaN."""
    run = subprocess.run(
        [sys.executable, "-c", WITHOUT_X64],
        env={**os.environ, "PYTENSOR_FLAGS": "floatX=float32,on_opt_error=raise"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.split() == ["nan", "nan", "nan", "3.0"]


def test_dtypes_are_those_that_pytensor_declares():
    """JAX gives float64 for PyTensor's sum of float32; the op has the dtype that it says."""
    x = pt.tensor4("x", dtype="float32")
    o = pt.zeros((1, 1, 2), "float32") + x.sum()
    h = pt.ones((1, 1, 2), "float32") * x.sum()
    out = sparse_block_gemv(o, x, h, [[0]], [[0]])
    value = pytensor.function([x], out, mode="JAX")(np.ones((1, 1, 2, 2), "float32"))
    assert (out.dtype, value.dtype) == ("float32", "float32")


def test_in_a_scan_whose_sizes_are_known():
    """Values and gradients are those of FAST_COMPILE; a sum over three steps of one layer."""
    rng = np.random.default_rng(0)
    W = pytensor.shared(rng.normal(size=(3, 3, 2, 2)), shape=(3, 3, 2, 2))
    start, index = pt.tensor("start", shape=(4, 2, 2)), pt.tensor("i", dtype="int64", shape=(4, 2))
    layers = pytensor.scan(
        lambda h, W, i: pt.tanh(sparse_block_dot(W, h, i, None, i)),
        outputs_info=[start],
        non_sequences=[W, index],
        n_steps=3,
        return_updates=False,
    )
    loss = layers.sum()
    outputs, values = (
        [loss, *pt.grad(loss, [W, start])],
        [rng.normal(size=(4, 2, 2)), [[0, -1]] * 4],
    )
    modes = "JAX", "FAST_COMPILE"
    functions = (pytensor.function([start, index], outputs, mode=mode) for mode in modes)
    for one, other in zip(*(function(*values) for function in functions), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9)


@pytest.fixture
def without_x64():
    jax.config.update("jax_enable_x64", False)
    yield
    jax.config.update("jax_enable_x64", True)


@pytest.mark.parametrize("padding_idx", [-(2**63), 2**31, 2**32 + 2, 2**63 - 1])
def test_without_x64_no_block_is_taken_for_what_pads(padding_idx, without_x64):
    index = pt.lmatrix()
    W, h = np.ones((3, 1, 1, 1), "float32"), np.ones((4, 1, 1), "float32")
    zero = np.zeros((4, 1), int)

    def product(padding_idx):
        y = sparse_block_dot(W, h, index, None, zero, padding_idx=padding_idx)
        return pytensor.function([index], y, mode="JAX")([[0], [1], [2], [-1]])

    np.testing.assert_array_equal(np.ravel(product(2)), [1, 1, 0, 1])
    with pytest.raises(NotImplementedError, match=f"padding_idx is {padding_idx}, which an index"):
        product(padding_idx)
