"""Products of gathered blocks, as they are written: which run as the op, which are left alone."""

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from cases import MODES, array_modes, in_python, needs_library
from pytensor.compile.mode import Mode, get_mode
from pytensor.graph.basic import Constant
from pytensor.graph.traversal import graph_inputs
from pytensor.tensor.blas import BatchedDot
from pytensor.tensor.elemwise import Elemwise

from blocksparse_ops import SparseBlockGemv, SparseBlockOuter
from blocksparse_ops.kernels.thresholds import DOT_ELEMENTS, GATHERED_BYTES
from blocksparse_ops.zeros import BlockZeros, zeros

BATCH, ROWS, COLUMNS = 6, 3, 4
BLOCKS = {"one": (5,), "two": (5, 2)}

FORMS = {
    "matmul": lambda x, B: pt.matmul(x[:, None, :], B)[:, 0],
    "batch of rows": lambda x, B: x[:, None, :] @ B,
    "batch of columns": lambda x, B: B.transpose(0, 2, 1) @ x[:, :, None],
    "einsum": lambda x, B: pt.einsum("np,npk->nk", x, B),
    "einsum, blocks first": lambda x, B: pt.einsum("npk,np->nk", B, x),
    "einsum, transposed": lambda x, B: pt.einsum("np,nkp->nk", x, B.transpose(0, 2, 1)),
    "vecmat": lambda x, B: pt.vecmat(x, B),
    "matvec": lambda x, B: pt.matvec(B.transpose(0, 2, 1), x),
    "batched dot": lambda x, B: BatchedDot()(x[:, None, :], B),
    "nonlinear": lambda x, B: pt.tanh(-(x[:, None, :] @ B)[:, 0] / x.shape[0]),
}


def problem(gather, is_static=False, dtype="float64", index_dtype="int64"):
    """Arrays of rows, blocks and one or two indices, and a variable for each."""
    counts = BLOCKS[gather]
    shapes = (BATCH, ROWS), (*counts, ROWS, COLUMNS), *((BATCH,) for _ in counts)
    return arrays_and_variables(shapes, is_static, dtype, index_dtype)


def arrays_and_variables(shapes, is_static=False, dtype="float64", index_dtype="int64"):
    """Arrays of these shapes: an operand, blocks, and an index for each axis of these."""
    rng = np.random.default_rng(0)
    operand, blocks, *indices = shapes
    low = -1 if np.dtype(index_dtype).kind == "i" else 0
    arrays = [
        rng.normal(size=operand).astype(dtype),
        rng.normal(size=blocks).astype(dtype),
        *(
            rng.integers(low * count, count, shape).astype(index_dtype)
            for count, shape in zip(blocks, indices, strict=False)
        ),
    ]
    # Of two indices it must be known that neither is repeated for the other.
    known = range(len(arrays)) if is_static else range(2, len(arrays)) if len(indices) > 1 else ()
    variables = [
        pt.tensor(dtype=a.dtype, shape=a.shape if k in known else (None,) * a.ndim)
        for k, a in enumerate(arrays)
    ]
    return arrays, variables


def product_and_gradients(compute, x, W, *indices):
    y = compute(x, W[indices])
    return [y, *pt.grad((y**2).sum(), [x, W])]


PLACES = 2

SHAPES = {
    "two": ((BATCH, ROWS), (5, 2, ROWS, COLUMNS), (BATCH,), (BATCH,)),
    "one": ((BATCH, ROWS), (5, ROWS, COLUMNS), (BATCH,)),
    "outputs": ((BATCH, ROWS), (5, ROWS, COLUMNS), (BATCH, PLACES)),
    "inputs": ((BATCH, PLACES, ROWS), (5, ROWS, COLUMNS), (BATCH, PLACES)),
    "both": (
        (BATCH, PLACES, ROWS),
        (5, 4, ROWS, COLUMNS),
        (BATCH, PLACES, 1),
        (BATCH, 1, PLACES + 1),
    ),
    "inputs, one output": (
        (BATCH, PLACES, ROWS),
        (5, 4, ROWS, COLUMNS),
        (BATCH, PLACES),
        (BATCH, 1),
    ),
    "one input, outputs": ((BATCH, ROWS), (5, 4, ROWS, COLUMNS), (BATCH, 1), (BATCH, PLACES)),
    "rows": ((BATCH, ROWS), (5, ROWS), (BATCH,)),
    "windows of rows": ((BATCH, PLACES, ROWS), (5, ROWS), (BATCH, PLACES)),
    "weighted rows": ((BATCH, PLACES), (5, COLUMNS), (BATCH, PLACES)),
}

# Of matrices: each with what it is of.
WINDOWS = {
    "product and sum": ("one", lambda x, B: (x[:, :, None] * B).sum(1)),
    "product and sum, transposed": (
        "one",
        lambda x, B: (B.transpose(0, 2, 1) * x[:, None, :]).sum(2),
    ),
    "outputs, matmul": ("outputs", lambda x, B: x[:, None, None, :] @ B),
    "outputs, columns": ("outputs", lambda x, B: (B.mT @ x[:, None, :, None])[..., 0]),
    "outputs, einsum": ("outputs", lambda x, B: pt.einsum("np,nwpq->nwq", x, B)),
    "outputs, product and sum": ("outputs", lambda x, B: (x[:, None, :, None] * B).sum(2)),
    "inputs, matmul": ("inputs", lambda x, B: (x[:, :, None, :] @ B).sum(1)),
    "inputs, einsum": ("inputs", lambda x, B: pt.einsum("nvp,nvpq->nq", x, B)),
    "inputs, einsum, transposed": (
        "inputs",
        lambda x, B: pt.einsum("vnqp,nvp->qn", B.transpose(1, 0, 3, 2), x),
    ),
    "inputs, product and sum": ("inputs", lambda x, B: (x[..., None] * B).sum((1, 2))),
    "each, matmul": ("inputs", lambda x, B: (x[:, :, None, :] @ B)[:, :, 0]),
    "each, einsum": ("inputs", lambda x, B: pt.einsum("nvp,nvpq->nvq", x, B)),
    "both, einsum": ("both", lambda x, B: pt.einsum("nvp,nvwpq->nwq", x, B)),
    "inputs of one output": ("inputs, one output", lambda x, B: (x[..., None] * B).sum((1, 2))),
    "outputs of one input": ("one input, outputs", lambda x, B: x[:, None, None, :] @ B),
    "both, product and sum": ("both", lambda x, B: (x[:, :, None, :, None] * B).sum((1, 3))),
}

# Not of matrices: PyTensor fuses these in Numba.
OF_ROWS = {
    "rows": ("rows", lambda x, b: (x * b).sum(-1)),
    "rows, einsum": ("rows", lambda x, b: pt.einsum("np,np->n", x, b)),
    "windows of rows": ("windows of rows", lambda x, b: (b * x * 2).sum((1, 2))),
    "windows of rows, each": ("windows of rows", lambda x, b: (b * x).sum(2)),
    "weighted rows": ("weighted rows", lambda x, b: (x[:, :, None] * b).sum(1)),
    "weighted rows, einsum": ("weighted rows", lambda x, b: pt.einsum("nvq,nv->nq", b, x)),
}


def ops_of(function):
    return [node.op for node in function.maker.fgraph.toposort()]


def count(function):
    """How many products, how many outers, and how many arrays of matrices computed besides."""
    ops = ops_of(function)
    computed = [
        x
        for node in function.maker.fgraph.apply_nodes
        for x in node.outputs
        if x.type.ndim == 3 and not any(x.type.broadcastable) and not node.op.view_map
    ]
    return (
        sum(isinstance(op, SparseBlockGemv) for op in ops),
        sum(isinstance(op, SparseBlockOuter) for op in ops),
        len(computed),
    )


def compare(inputs, outputs, arrays, function):
    """Against what PyTensor does without rewrites."""
    plain = pytensor.function(inputs, outputs, mode="FAST_COMPILE")
    for one, other in zip(function(*arrays), plain(*arrays), strict=True):
        assert one.dtype == other.dtype
        rtol = 1e-4 if one.dtype == "float32" else 1e-9
        np.testing.assert_allclose(one, other, rtol=rtol, atol=rtol)


@pytest.mark.parametrize("is_static", [False, True])
@pytest.mark.parametrize("gather", BLOCKS)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("mode", MODES[1:])
def test_forms_run_as_the_op(mode, form, gather, is_static):
    arrays, inputs = problem(gather, is_static)
    outputs = product_and_gradients(FORMS[form], *inputs)
    function = pytensor.function(inputs, outputs, mode=in_python(mode))
    assert count(function) == (2, 1, 0)
    for old, new in zip(outputs, function.maker.fgraph.outputs, strict=True):
        assert old.type.ndim == new.type.ndim
    compare(inputs, outputs, arrays, function)


@pytest.mark.parametrize("is_static", [False, True])
@pytest.mark.parametrize("form", [*WINDOWS, *OF_ROWS])
@pytest.mark.parametrize("mode", MODES[1:])
def test_windows_and_rows_run_as_the_op(mode, form, is_static):
    """Rows where C++ is compiled alone."""
    kind, compute = {**WINDOWS, **OF_ROWS}[form]
    arrays, inputs = arrays_and_variables(SHAPES[kind], is_static)
    outputs = product_and_gradients(compute, *inputs)
    function = pytensor.function(inputs, outputs, mode=in_python(mode))
    is_left = mode == "NUMBA" and form in OF_ROWS
    assert count(function)[:2] == ((0, 0) if is_left else (2, 1))
    compare(inputs, outputs, arrays, function)


@pytest.mark.parametrize(
    ("rows", "wrt", "is_faster"),
    [
        (16, (), True),
        (15, (), False),
        (8, ("B",), True),
        (7, ("B",), False),
        (2, ("x",), False),
        (2, ("x", "B"), True),
        (None, (), False),
        (None, ("B",), False),
        (None, ("x", "B"), True),
    ],
)
def test_in_numba_a_sum_of_products_is_the_op_where_that_is_faster(rows, wrt, is_faster):
    x, B = of(None, rows), of(5, rows, rows)
    y = (x[:, :, None] * B[INDEX]).sum(1)
    outputs = [y, *pt.grad((y**2).sum(), [{"x": x, "B": B}[name] for name in wrt])]
    function = pytensor.function([x, B, INDEX], outputs, mode=in_python("NUMBA"))
    gemvs, outers, _ = count(function)
    assert (gemvs, outers) == ((1 + ("x" in wrt), int("B" in wrt)) if is_faster else (0, 0))


@pytest.mark.parametrize("form", ["batch of rows", "einsum"])
@pytest.mark.parametrize("mode", [*MODES[1:], *array_modes("JAX")])
def test_compiled(mode, form):
    arrays, inputs = problem("two", dtype="float32")
    outputs = product_and_gradients(FORMS[form], *inputs)
    function = pytensor.function(inputs, outputs, mode=mode)
    assert count(function)[:2] == ((0, 0) if mode == "JAX" else (2, 1))
    compare(inputs, outputs, arrays, function)


def jax_problem(kind, compute, index_dtype="int64"):
    """A problem of known sizes, with the result and the gradients."""
    arrays, inputs = arrays_and_variables(SHAPES[kind], is_static=True, index_dtype=index_dtype)
    return arrays, inputs, product_and_gradients(compute, *inputs)


@pytest.fixture
def as_if_large(monkeypatch, on_cpu):
    """The blocks of any problem are large, and too many for JAX to gather at once."""
    for name in ("GATHERED_BYTES", "DOT_ELEMENTS", "DOT_USES", "SUM_USES"):
        monkeypatch.setattr(f"blocksparse_ops.rewrites.gathering.{name}", 0)


# In JAX the write of its gradient has another form.
WRITTEN_OTHERWISE = "inputs, einsum, transposed"


@needs_library("JAX")
@pytest.mark.parametrize("form", [*FORMS, *WINDOWS, *OF_ROWS])
def test_in_jax_products_of_many_blocks_run_as_the_op(form, as_if_large):
    kind, compute = {**WINDOWS, **OF_ROWS}.get(form) or ("two", FORMS[form])
    arrays, inputs, outputs = jax_problem(kind, compute)
    function = pytensor.function(inputs, outputs, mode=in_python("JAX"))
    outers = 0 if form == WRITTEN_OTHERWISE else 1
    assert count(function)[:2] == ((0, 0) if form in OF_ROWS else (2, outers))
    compare(inputs, outputs, arrays, function)


@pytest.mark.parametrize("mode", array_modes("JAX"))
@pytest.mark.parametrize("index_dtype", ["int64", "uint8", "uint64"])
@pytest.mark.parametrize("form", ["inputs, matmul", "both, einsum"])
def test_in_jax_an_index_out_of_range_means_what_it_did(form, index_dtype, mode, as_if_large):
    (x, W, *indices), inputs, outputs = jax_problem(*WINDOWS[form], index_dtype)
    indices[0][0], indices[-1][-1] = 99, 99 if index_dtype[0] == "u" else -99
    function = pytensor.function(inputs, outputs, mode=mode)
    assert count(function)[:2] == (2, 1)
    excluded = pytensor.function(inputs, outputs, mode=get_mode(mode).excluding("blocksparse"))
    assert count(excluded)[:2] == (0, 0)
    for one, other in zip(function(x, W, *indices), excluded(x, W, *indices), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9)


@needs_library("JAX")
@pytest.mark.parametrize("wrong", [99, -99])
def test_in_jax_a_constant_out_of_range_means_what_it_did(wrong, as_if_large):
    """Its gradient is left out, where the op would refuse the index."""
    (x, W, *indices), inputs, _ = jax_problem(*WINDOWS["inputs, matmul"], "int64")
    indices[0][0] = wrong
    x_in, W_in = inputs[:2]
    y = WINDOWS["inputs, matmul"][1](x_in, W_in[pt.constant(indices[0])])
    gradient = pt.grad((y**2).sum(), W_in)
    modes = get_mode("JAX"), get_mode("JAX").excluding("blocksparse")
    functions = (pytensor.function([x_in, W_in], gradient, mode=mode) for mode in modes)
    one, other = (function(x, W) for function in functions)
    np.testing.assert_allclose(one, other, rtol=1e-9)


DOTS, SUM = (FORMS["batch of rows"], FORMS["einsum"]), WINDOWS["product and sum"][1]


def products_in_jax(form, batch, groups, columns):
    """How many run as the op, of examples that have blocks of 16 rows."""
    x, B, i = of(batch, 16), of(groups, 16, columns), of(batch, dtype="int64")
    return count(pytensor.function([x, B, i], form(x, B[i]), mode=in_python("JAX")))[0]


# Of float64: how many examples of 16 x 32 numbers JAX gathers at once.
AT_ONCE = GATHERED_BYTES // (8 * DOT_ELEMENTS)


@needs_library("JAX")
@pytest.mark.parametrize(
    ("batch", "groups", "columns", "dots", "sums"),
    [
        (AT_ONCE, 9, 32, 0, 0),
        (AT_ONCE + 1, 9, 32, 1, 1),
        (8 * 900, 900, 32, 1, 1),
        (8 * 900 - 1, 900, 32, 0, 1),
        (6000, 6000, 32, 0, 1),
        (6000, 6001, 32, 0, 0),
        (9000, 9, 31, 0, 1),
        (None, 9, 32, 0, 0),
        (9000, None, 32, 0, 0),
    ],
)
def test_in_jax_how_many_are_many(batch, groups, columns, dots, sums, on_cpu):
    """Sizes that are not known may be small."""
    for form, gemvs in {**dict.fromkeys(DOTS, dots), SUM: sums}.items():
        assert products_in_jax(form, batch, groups, columns) == gemvs


@needs_library("JAX")
@pytest.mark.parametrize(("backend", "dots"), [("cpu", 1), ("gpu", 0)])
def test_in_jax_dots_on_a_gpu_are_left_alone(monkeypatch, backend, dots):
    monkeypatch.setattr("jax.default_backend", lambda: backend)
    for form, gemvs in {**dict.fromkeys(DOTS, dots), SUM: 1}.items():
        assert products_in_jax(form, 9000, 9, 32) == gemvs


# What is written into rows of zeros: of integers whose product among themselves would overflow, and
# which have no negative.
OF_INTEGERS = {
    "int8": lambda u, v, a, b: u * v / a / b,
    "uint8": lambda u, v, a, b: u * v - a * v,
    "bool": lambda u, v, a, b: u * v - a * v * b,
}


@pytest.mark.parametrize("dtype", OF_INTEGERS)
def test_integers_among_the_factors_of_a_gradient(dtype):
    rng = np.random.default_rng(0)
    values = [rng.integers(0, 5, BATCH), *rng.normal(size=(2, BATCH, 3))]
    values += [np.full((BATCH, 3), 100).astype(dtype)] * 2
    index, u, v = pt.lvector(), pt.dmatrix(), pt.dmatrix()
    a, b = pt.matrix(dtype=dtype), pt.matrix(dtype=dtype)
    written = OF_INTEGERS[dtype](u[:, :, None], v[:, None, :], a[:, :, None], b[:, :, None])
    total = pt.inc_subtensor(zeros((5, 3, 3), "float64")[index], written)
    inputs = [index, u, v, a, b]
    mode = Mode("py", "fast_run")
    function = pytensor.function(inputs, total, mode=mode, on_unused_input="ignore")
    assert any(isinstance(node.op, SparseBlockOuter) for node in function.maker.fgraph.apply_nodes)
    expected = pytensor.function(
        inputs, total, mode=mode.excluding("blocksparse"), on_unused_input="ignore"
    )
    np.testing.assert_allclose(function(*values), expected(*values))


@pytest.mark.parametrize("index_dtype", ["int8", "uint64"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_dtypes(dtype, index_dtype):
    arrays, inputs = problem("two", dtype=dtype, index_dtype=index_dtype)
    outputs = product_and_gradients(FORMS["einsum"], *inputs)
    function = pytensor.function(inputs, outputs, mode=in_python("NUMBA"))
    assert count(function) == (2, 1, 0)
    compare(inputs, outputs, arrays, function)


TAKES = {
    "take": lambda x, B, i: x[:, None, :] @ B.take(i, axis=0),
    "take, wrapped": lambda x, B, i: x[:, None, :] @ B.take(i, axis=0, mode="wrap"),
    "slices that take all": lambda x, B, i: x[:, None, :] @ B[i, :, :],
    "of transposed blocks": lambda x, B, i: (
        x[:, None, :] @ B.transpose(0, 2, 1)[i].transpose(0, 2, 1)
    ),
    "by a constant": lambda x, B, i: x[:, None, :] @ B[np.array([0, -1, 1, 1, 4, 2])],
    "used twice": lambda x, B, i: (
        FORMS["batch of rows"](x, B[i]) * FORMS["batch of rows"](-x, B[i])
    ),
}


@pytest.mark.parametrize("take", TAKES)
def test_gathers(take):
    arrays, inputs = problem("one")
    y = TAKES[take](*inputs)
    outputs = [y, *pt.grad((y**2).sum(), inputs[:2])]
    options = {"on_unused_input": "ignore"}
    function = pytensor.function(inputs, outputs, mode=in_python("NUMBA"), **options)
    plain = pytensor.function(inputs, outputs, mode="FAST_COMPILE", **options)
    assert count(function) == ((4, 2, 0) if take == "used twice" else (2, 1, 0))
    for one, other in zip(function(*arrays), plain(*arrays), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-9)


ALL = {
    **{
        f"{form} of {gather}": (gather, compute)
        for gather in BLOCKS
        for form, compute in FORMS.items()
    },
    **WINDOWS,
    **OF_ROWS,
}


@pytest.mark.parametrize("is_static", [False, True])
@pytest.mark.parametrize("form", ALL)
def test_a_step_is_an_outer_in_place(form, is_static):
    kind, compute = ALL[form]
    (x_value, W_value, *indices), (x, _, *ij) = arrays_and_variables(SHAPES[kind], is_static)
    W = pytensor.shared(W_value, shape=W_value.shape if is_static else None)
    loss = ((compute(x, W[tuple(ij)]) - 1) ** 2).mean()
    new = W - 0.1 * pt.grad(loss, W)
    expected = pytensor.function([x, *ij], [loss, new], mode="FAST_COMPILE")(x_value, *indices)
    function = pytensor.function([x, *ij], loss, updates=[(W, new)], mode=in_python("CVM"))
    [outer] = [
        node for node in function.maker.fgraph.toposort() if isinstance(node.op, SparseBlockOuter)
    ]
    assert outer.op.inplace
    assert not (outer.inputs[0].owner and isinstance(outer.inputs[0].owner.op, BlockZeros))
    assert count(function)[:2] == (1, 1)
    np.testing.assert_allclose(function(x_value, *indices), expected[0], rtol=1e-9)
    np.testing.assert_allclose(W.get_value(), expected[1], rtol=1e-9, atol=1e-9)


BIASED = {
    "one": ("batch of rows", "matmul", "einsum", "batch of columns"),
    "outputs": ("outputs, matmul", "outputs, einsum"),
}


@pytest.mark.parametrize("is_static", [False, True])
@pytest.mark.parametrize(
    ("kind", "form"), [(kind, form) for kind, forms in BIASED.items() for form in forms]
)
def test_a_bias_gathered_by_the_same_index_is_where_the_product_starts(kind, form, is_static):
    arrays, (x, B, i) = arrays_and_variables(SHAPES[kind], is_static)
    b = pt.tensor(dtype="float64", shape=(5, COLUMNS) if is_static else (None, None))
    compute = WINDOWS[form][1] if form in WINDOWS else FORMS[form]
    products = compute(x, B[i])
    places = iter(range(i.type.ndim + 1))
    order = ["x" if is_one else next(places) for is_one in products.type.broadcastable]
    y = products + b[i].dimshuffle(order)
    function = pytensor.function([x, B, i, b], y, mode=in_python("CVM"))
    [gemv] = [n for n in function.maker.fgraph.apply_nodes if isinstance(n.op, SparseBlockGemv)]
    assert gemv.op.inplace
    assert not isinstance(function.maker.fgraph.outputs[0].owner.op, Elemwise)
    expected = pytensor.function([x, B, i, b], y, mode="FAST_COMPILE")
    arrays.append(np.arange(5.0 * COLUMNS).reshape(5, COLUMNS))
    np.testing.assert_allclose(function(*arrays), expected(*arrays), rtol=1e-9)


@pytest.mark.parametrize("is_static", [False, True])
def test_a_step_of_two_tables_makes_no_checks_but_its_own(is_static):
    (x_value, W_value, index), (x, _, i) = problem("one", is_static)
    tables = [
        pytensor.shared(W_value + k, shape=W_value.shape if is_static else None) for k in range(2)
    ]
    y = sum(FORMS["batch of rows"](x + k, W[i]) for k, W in enumerate(tables))
    loss = (y**2).sum()
    updates = [(W, W - 0.1 * pt.grad(loss, W)) for W in tables]
    expected = pytensor.function([x, i], [new for _, new in updates], mode="FAST_COMPILE")
    values = expected(x_value, index)
    function = pytensor.function([x, i], updates=updates, mode=in_python("CVM"))
    assert count(function)[:2] == (2, 2)
    function(x_value, index)
    for W, value in zip(tables, values, strict=True):
        np.testing.assert_allclose(W.get_value(), value, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("form", ["batch of rows", "einsum"])
def test_a_step_clipped_by_its_norm(form):
    (x_value, W_value, index), (x, _, i) = problem("one")
    W = pytensor.shared(W_value)
    gradient = pt.grad((FORMS[form](x, W[i]) ** 2).sum(), W)
    norm = pt.sqrt((gradient**2).sum())
    new = W - gradient * pt.minimum(1, 0.5 / norm)
    expected = pytensor.function([x, i], new, mode="FAST_COMPILE")(x_value, index)
    function = pytensor.function([x, i], updates=[(W, new)], mode=in_python("CVM"))
    [outer] = [op for op in ops_of(function) if isinstance(op, SparseBlockOuter)]
    assert outer.inplace
    function(x_value, index)
    np.testing.assert_allclose(W.get_value(), expected, rtol=1e-9, atol=1e-9)


def test_second_derivatives():
    arrays, (x, W, i) = problem("one")
    y = FORMS["batch of rows"](x, W[i])
    direction = pt.grad(pt.tanh(y).sum(), W)
    outputs = pt.grad((direction**3).sum(), [x, W])
    function = pytensor.function([x, W, i], outputs, mode=in_python("CVM"))
    compare([x, W, i], outputs, arrays, function)


INDEX = pt.vector("i", dtype="int64")


def inputs_of(*outputs):
    return [v for v in graph_inputs(outputs) if not isinstance(v, Constant)]


def of(*shape, dtype="float64"):
    return pt.tensor(dtype=dtype, shape=shape)


def rows(x, B):
    return x[:, None, :] @ B


NEAR_MISSES = {
    "a mask": lambda x, B, W: rows(x, B[pt.vector(dtype="bool")]),
    "a slice": lambda x, B, W: rows(x, B[INDEX, 1:]),
    "a slice of blocks": lambda x, B, W: rows(x, W[INDEX, 1:][:, 0]),
    "a number": lambda x, B, W: rows(x, W[INDEX, 1]),
    "blocks along another axis": lambda x, B, W: rows(x, B[:, INDEX].transpose(1, 0, 2)),
    "another use of the blocks": lambda x, B, W: rows(x, B[INDEX]) + (B[INDEX] ** 2).sum(),
    "a product with matrices": lambda x, B, W: of(None, None, None) @ B[INDEX],
    "one row for all": lambda x, B, W: x[0] @ B[INDEX],
    "one row for all, in a batch": lambda x, B, W: rows(of(1, None), B[INDEX]),
    "one block for all": lambda x, B, W: rows(x, B[of(1, dtype="int64")]),
    "one index for all": lambda x, B, W: rows(x, W[of(1, dtype="int64"), INDEX]),
    "two indices of lengths that may differ": lambda x, B, W: rows(
        x, W[pt.vector(dtype="int64"), INDEX]
    ),
    "two indices that differ along one window": lambda x, B, W: (
        of(6, 2, None)[..., None] * W[of(6, 2, dtype="int64"), of(6, 2, dtype="int64")]
    ).sum((1, 2)),
    "all rows for each": lambda x, B, W: x @ B[INDEX],
    "an index of three axes": lambda x, B, W: (
        of(None, None, None, 1, None) @ B[pt.tensor3(dtype="int64")]
    ),
    "integers": lambda x, B, W: rows(x.astype("int64"), B.astype("int64")[INDEX]),
    "complex numbers": lambda x, B, W: rows(
        of(None, None, dtype="complex128"), of(None, None, None, dtype="complex128")[INDEX]
    ),
    "dtypes of two kinds": lambda x, B, W: rows(x.astype("float32"), B[INDEX]),
    "products that are not summed": lambda x, B, W: x[:, :, None] * B[INDEX],
    "products that are summed over examples": lambda x, B, W: (x[:, :, None] * B[INDEX]).sum(
        (0, 1)
    ),
    "products that are summed over all of a block": lambda x, B, W: (
        of(None, None, None) * B[INDEX]
    ).sum((1, 2)),
    "blocks that are summed": lambda x, B, W: B[INDEX].sum(1) * x[:, :1],
    "a square": lambda x, B, W: (B[INDEX] * B[INDEX] * x[:, :, None]).sum(1),
    "one window for all": lambda x, B, W: pt.tensordot(
        of(None, None, None), B[INDEX], axes=[[1, 2], [0, 1]]
    ),
    "an einsum of three": lambda x, B, W: pt.einsum(
        "nv,nvp,nvpq->nq", of(None, None), of(None, None, None), B[pt.matrix(dtype="int64")]
    ),
    "an einsum of a mask": lambda x, B, W: pt.einsum("np,npk->nk", x, B[pt.vector(dtype="bool")]),
    "no product": lambda x, B, W: B[INDEX] * 2,
}


@pytest.mark.parametrize("mode", MODES[1:])
@pytest.mark.parametrize("name", NEAR_MISSES)
def test_near_misses_are_left_alone(name, mode):
    """In the graph of the gradient, too."""
    x, B, W = of(None, None), of(None, None, None), of(None, None, None, None)
    y = NEAR_MISSES[name](x, B, W)
    inputs = inputs_of(y)
    wrt = [v for v in inputs if v.dtype == y.dtype == "float64"]
    gradients = pt.grad((y**2).sum(), wrt) if wrt else []
    function = pytensor.function(inputs, [y, *gradients], mode=in_python(mode))
    assert count(function)[:2] == (0, 0)


# Rows of a table by a matrix of indices, whose second axis is one of the matrices multiplied.
MATRICES = {
    "rows @ matrix": lambda rows, y: rows @ y[0].T,
    "rows @ matrices": lambda rows, y: rows @ y.transpose(0, 2, 1),
    "rows with themselves": lambda rows, y: rows @ rows.transpose(0, 2, 1),
    "matrices @ rows": lambda rows, y: y @ rows.transpose(0, 2, 1),
    "a sum of products": lambda rows, y: (rows @ y.transpose(0, 2, 1)).sum(1),
}


@pytest.mark.parametrize("mode", MODES[1:])
@pytest.mark.parametrize("name", MATRICES)
def test_products_of_matrices_of_rows_are_left_alone(name, mode):
    """Without a gradient: that uses the rows in other ways, too."""
    inputs = table, index, y = pt.dmatrix(), pt.lmatrix(), pt.dtensor3()
    product = MATRICES[name](table[index], y)
    function = pytensor.function(inputs, product, mode=in_python(mode), on_unused_input="ignore")
    assert count(function)[:2] == (0, 0)
    rng = np.random.default_rng(0)
    values = rng.normal(size=(6, 2)), rng.integers(-6, 6, (4, 3)), rng.normal(size=(4, 3, 2))
    expected = MATRICES[name](values[0][values[1]], values[2])
    np.testing.assert_allclose(function(*values), expected)


def test_dots_of_an_inner_size_known_on_one_side_are_left_alone():
    table, index, x, y = pt.dmatrix(), pt.lmatrix(), pt.dmatrix(), pt.dtensor3()
    written = pt.zeros_like(table)[index].inc(x[:, :, None] @ y)
    function = pytensor.function([table, index, x, y], written, mode=in_python("CVM"))
    values = np.ones((6, 2)), np.zeros((4, 3), int), np.ones((4, 3)), np.ones((4, 1, 2))
    np.testing.assert_array_equal(function(*values), [[12.0, 12.0]] + 5 * [[0.0, 0.0]])


def test_an_einsum_of_two_dtypes_is_left_alone():
    x, B, index = pt.ftensor3(), pt.dtensor3(), pt.lmatrix()
    y = pt.einsum("nvp,nvpq->nq", x, B[index])
    outputs = [y, *pt.grad((y**2).sum(), [B, x])]
    function = pytensor.function([x, B, index], outputs, mode=in_python("CVM"))
    assert count(function)[:2] == (0, 0)


@pytest.mark.parametrize("gather", BLOCKS)
def test_writes_that_are_no_gradient_are_left_alone(gather):
    _, (x, W, *ij) = problem(gather)
    rows = of(None, 1, COLUMNS)
    outers = x[:, :, None] * rows
    outputs = [
        W[tuple(ij)].inc(outers),
        pt.zeros_like(W)[tuple(ij)].inc(x[:, :, None] / rows),
        pt.zeros_like(W)[tuple(ij)].set(outers + 1),
        pt.zeros_like(W)[tuple(ij)].set(outers),
    ]
    function = pytensor.function(inputs_of(*outputs), outputs, mode=in_python("CVM"))
    assert count(function)[:2] == (0, 0)


def test_a_write_of_scaled_transposed_dots_is_an_outer():
    arrays, (x, W, i) = problem("one")
    row, scale = of(None, COLUMNS), of(None)
    outers = scale[:, None, None] * (row[:, :, None] @ x[:, None, :]).transpose(0, 2, 1)
    inputs, outputs = [row, scale, x, W, i], [pt.zeros_like(W)[i].inc(outers)]
    function = pytensor.function(inputs, outputs, mode=in_python("CVM"))
    assert count(function)[:2] == (0, 1)
    values = [np.arange(24.0).reshape(BATCH, COLUMNS), np.arange(6.0), *arrays]
    compare(inputs, outputs, values, function)


@pytest.mark.parametrize("mode", MODES[1:])
def test_excluded(mode):
    _, inputs = problem("one")
    outputs = product_and_gradients(FORMS["batch of rows"], *inputs)
    for name in ("local_gathered_product", "blocksparse"):
        excluded = Mode("py", get_mode(mode).excluding(name).optimizer)
        function = pytensor.function(inputs, outputs, mode=excluded)
        assert count(function)[:2] == (0, 0)


@pytest.mark.parametrize("gather", BLOCKS)
@pytest.mark.parametrize("mode", ["CVM", "NUMBA"])
def test_an_index_out_of_range_is_an_index_error(mode, gather):
    arrays, inputs = problem(gather)
    outputs = product_and_gradients(FORMS["batch of rows"], *inputs)
    function = pytensor.function(inputs, outputs, mode=in_python(mode))
    for value in (-6, 5):
        arrays[2][-1] = value
        with pytest.raises(IndexError, match=rf"{value}"):
            function(*arrays)


def test_a_constant_index_out_of_range_is_an_index_error():
    arrays, (x, B, _) = problem("one", is_static=True)
    y = FORMS["batch of rows"](x, B[np.array([0, 2, 1, 5, 3, 4])])
    function = pytensor.function([x, B], y, mode=in_python("CVM"))
    with pytest.raises(IndexError):
        function(*arrays[:2])


@pytest.mark.parametrize("form", ["batch of rows", "batch of columns", "einsum", "vecmat"])
def test_sizes_that_disagree_are_an_error(form):
    """Of an example too many, and of one, which nothing repeats."""
    (x, B, i), inputs = problem("one")
    outputs = product_and_gradients(FORMS[form], *inputs)
    function = pytensor.function(inputs, outputs, mode=in_python("CVM"))
    assert count(function) == (2, 1, 0)
    for rows, index in ((x[1:], i), (x, i[1:]), (x[:1], i), (x, i[:1]), (x[:, 1:], i)):
        with pytest.raises(ValueError, match="nothing is broadcast"):
            function(rows, B, index)


# With an index of two axes of examples.
OF_EACH = ("each, matmul", "each, einsum", "windows of rows, each")


@pytest.mark.parametrize("form", OF_EACH)
@pytest.mark.parametrize("mode", MODES[1:])
def test_axes_of_examples_that_disagree_are_an_error(mode, form):
    """Of as many examples in all: flattened, rows would meet the blocks of others."""
    kind, compute = ALL[form]
    (x, B, i), inputs = arrays_and_variables(SHAPES[kind])
    outputs = product_and_gradients(compute, *inputs)
    function = pytensor.function(inputs, outputs, mode=in_python(mode))
    for rows, index in ((x.swapaxes(0, 1), i), (x, i.T), (x[:0], i[:, :0]), (x[:, :0], i[:0])):
        with pytest.raises((ValueError, AssertionError)):
            function(rows, B, index)


@pytest.mark.parametrize("mode", array_modes("JAX"))
def test_in_jax_axes_of_examples_that_disagree_are_an_error(mode, as_if_large):
    kind, compute = WINDOWS["each, matmul"]
    (x, *others), (_, *known), _ = jax_problem(kind, compute)
    rows = of(None, None, ROWS)
    function = pytensor.function([rows, *known], compute(rows, known[0][known[1]]), mode=mode)
    assert count(function)[0] == 1
    with pytest.raises((ValueError, TypeError)):
        function(x.swapaxes(0, 1), *others)


@pytest.mark.parametrize("side", [0, 1])
def test_axes_of_outers_that_disagree_are_an_error(side):
    (_, B, i), (_, *known) = arrays_and_variables(SHAPES["inputs"])
    sides = [of(None, None, size) for size in (ROWS, COLUMNS)]
    outers = sides[0][..., None] * sides[1][:, :, None]
    inputs, gradients = [*sides, *known], [pt.zeros_like(known[0])[known[1]].inc(outers)]
    function = pytensor.function(inputs, gradients, mode=in_python("CVM"))
    assert count(function)[1] == 1
    values = [np.ones((*i.shape, size)) for size in (ROWS, COLUMNS)]
    compare(inputs, gradients, [*values, B, i], function)
    values[side] = values[side].swapaxes(0, 1)
    with pytest.raises((ValueError, AssertionError)):
        function(*values, B, i)


def test_blocks_that_are_known_to_have_no_elements():
    """What PyTensor takes their shape for would be the op's."""
    B, i, x = of(3, 0, 3), pt.tensor("i", dtype="int64", shape=(2, None)), of(2, 2, 3)
    function = pytensor.function([B, i, x], x[:, :, None] @ B[i].mT, mode=in_python("NUMBA"))
    assert count(function)[0] == 0


def test_no_examples():
    arrays, inputs = problem("one")
    outputs = product_and_gradients(FORMS["einsum"], *inputs)
    function = pytensor.function(inputs, outputs, mode=in_python("CVM"))
    x, B, i = arrays
    value, *gradients = function(x[:0], B, i[:0])
    assert value.shape == (0, COLUMNS)
    assert [g.shape for g in gradients] == [(0, ROWS), B.shape]
    assert not gradients[1].any()


def test_in_a_scan():
    (x, B, i), (rows, blocks, _) = problem("one")
    indices = pt.matrix(dtype="int64")
    products = pytensor.scan(
        lambda k: FORMS["matmul"](rows, blocks[k]), sequences=[indices], return_updates=False
    )
    function = pytensor.function([rows, blocks, indices], products, mode=in_python("CVM"))
    [loop] = [op for op in ops_of(function) if hasattr(op, "fgraph")]
    assert any(isinstance(node.op, SparseBlockGemv) for node in loop.fgraph.apply_nodes)
    steps = np.stack([i, i[::-1]])
    expected = [(x[:, None] @ B[step])[:, 0] for step in steps]
    np.testing.assert_allclose(function(x, B, steps), expected, rtol=1e-9)
