"""The graphs that the rewrites give, the values these give, and where they must not fire."""

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from cases import MODES as ALL_MODES
from cases import Draw, Sizes, in_python, needs_compiler, symbols
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pytensor.compile.mode import Mode, get_mode
from pytensor.tensor.basic import Alloc
from pytensor.tensor.elemwise import DimShuffle
from pytensor.tensor.shape import Reshape, SpecifyShape

from blocksparse_ops import (
    SparseBlockGemv,
    SparseBlockOuter,
    sparse_block_dot,
    sparse_block_gemv,
    sparse_block_outer,
)
from blocksparse_ops.zeros import RepeatedZero

SIZES = Sizes(iBlocks=6, oBlocks=7, iSize=4, oSize=5, iWin=2, oWin=3, batch=3)

MODES = ALL_MODES[1:]

VIEWS = (DimShuffle, SpecifyShape, Reshape, RepeatedZero)


class Step:
    """A layer's loss, its gradient, and the variables of a training step."""

    def __init__(self, dtype, dots=1, cost=lambda y: (y**2).mean()):
        self.dtype = np.dtype(dtype)
        draws = [Draw(SIZES, seed, dtype).dot() for seed in range(dots)]
        rng = np.random.default_rng(0)
        self.W = pytensor.shared(draws[0]["W"], "W")
        self.V = pytensor.shared(rng.normal(size=draws[0]["W"].shape).astype(dtype), "V")
        self.b = pytensor.shared(draws[0]["b"], "b")
        self.lr, self.n = (pt.scalar(name, dtype=dtype) for name in ("lr", "n"))
        self.shared_lr = pytensor.shared(self.dtype.type(0.1), "shared_lr")
        self.inputs, self.values = [self.lr, self.n], [self.dtype.type(0.1), self.dtype.type(3)]
        self.dots = []
        for arrays in draws:
            # Only the first blocks are in use.
            arrays = {k: arrays[k] for k in ("h", "inputIdx", "outputIdx")}
            arrays["inputIdx"], arrays["outputIdx"] = (
                abs(arrays[k]) % 3 for k in ("inputIdx", "outputIdx")
            )
            inputs = symbols(arrays)
            self.inputs += inputs.values()
            self.values += arrays.values()
            self.dots.append(sparse_block_dot(W=self.W, b=self.b, **inputs))
        self.gradients = [pt.grad(cost(dot), self.W) for dot in self.dots]
        self.g = pt.grad(sum(cost(dot) for dot in self.dots), self.W)

    def compile(self, updates, mode, outputs=None, **kwargs):
        return pytensor.function(
            self.inputs, outputs, updates=updates, mode=mode, on_unused_input="ignore", **kwargs
        )

    def expected(self, updates):
        """The new values of the shared variables, without our rewrites."""
        mode = PYTHON.excluding("blocksparse")
        return self.compile(None, mode, [new for _, new in updates])(*self.values)


def like_weights(function):
    """Nodes that make a value of the weights' shape, but for views."""
    return [
        node
        for node in function.maker.fgraph.toposort()
        if node.outputs[0].type.ndim == 4
        and not all(node.outputs[0].type.broadcastable)
        and not isinstance(node.op, VIEWS)
    ]


def is_dense_operation(node):
    """Newer versions of PyTensor wrap an Elemwise in ops of their own."""
    return type(node.op).__name__.endswith("Elemwise")


def in_place_outers(nodes):
    return [n for n in nodes if isinstance(n.op, SparseBlockOuter) and n.op.inplace]


def assert_step(step, updates, mode, outers, dense):
    """The step's graph holds what it should, works in place, and gives the right values."""
    expected = step.expected(updates)
    function = step.compile(updates, mode)
    nodes = like_weights(function)
    assert len(in_place_outers(nodes)) == outers
    others = [node for node in nodes if node not in in_place_outers(nodes)]
    assert len(others) == dense
    assert all(is_dense_operation(n) and n.op.destroy_map for n in others)
    pointers = [v.get_value(borrow=True).ctypes.data for v, _ in updates]
    before = [v.get_value() for v, _ in updates]
    function(*step.values)
    assert [v.get_value(borrow=True).ctypes.data for v, _ in updates] == pointers
    tolerance = 100 * np.finfo(step.dtype).eps
    for (variable, _), old, new in zip(updates, before, expected, strict=True):
        np.testing.assert_allclose(variable.get_value(), new, rtol=tolerance, atol=tolerance)
        if dense == 0:
            np.testing.assert_array_equal(variable.get_value()[3:], old[3:])
            np.testing.assert_array_equal(variable.get_value()[:, 3:], old[:, 3:])


HALF = np.float32(0.5)

# Every way to write a plain step, but for the kind of learning rate.
PURE = {
    "W - lr*g": lambda s, lr: s.W - lr * s.g,
    "W + (-lr)*g": lambda s, lr: s.W + (-lr) * s.g,
    "W - g*lr": lambda s, lr: s.W - s.g * lr,
    "W - lr*g/n": lambda s, lr: s.W - lr * s.g / s.n,
    "-lr*g + W": lambda s, lr: -lr * s.g + s.W,
    "W - lr*(g*c)": lambda s, lr: s.W - lr * (s.g * HALF),
    "W - (lr*-g)": lambda s, lr: s.W - (lr * -s.g),
    "W - (lr*g)*c": lambda s, lr: s.W - (lr * s.g) * HALF,
}

RATES = {
    "python": lambda s: 0.05,
    "constant": lambda s: s.dtype.type(0.05),
    "shared": lambda s: s.shared_lr,
    "input": lambda s: s.lr,
}


# To compile takes most of the time. So of each kind of step few are compiled, in both modes; of the
# others, which have the same ops, the graph that a mode's rewrites give runs in Python, in place as
# well.
PYTHON = Mode("py", "fast_run")
COMPILED = ("W - lr*g", "input")


@pytest.mark.parametrize("form", PURE)
@pytest.mark.parametrize(
    ("dtype", "floatX", "mode"),
    [
        pytest.param("float32", "float32", "CVM", marks=needs_compiler),
        ("float32", "float32", "NUMBA"),
        ("float64", "float64", PYTHON),
        ("float32", "float64", PYTHON),
    ],
)
def test_plain_steps(form, dtype, floatX, mode):
    """One in-place outer, nothing dense; whatever the learning rate is."""
    with pytensor.config.change_flags(floatX=floatX):
        for rate in RATES if form == COMPILED[0] else ["input"]:
            step = Step(dtype)
            new = PURE[form](step, RATES[rate](step))
            if new.dtype != dtype:
                # A Python number is a float64 there: PyTensor itself refuses such an update.
                assert (rate, dtype, floatX) == ("python", "float32", "float64")
                continue
            run_by = mode if (form, rate) == COMPILED else in_python(mode)
            assert_step(step, [(step.W, new)], run_by, outers=1, dense=0)


def momentum(s):
    velocity = 0.9 * s.V - s.lr * s.g if s.dtype == "float64" else HALF * s.V - s.lr * s.g
    return [(s.V, velocity)]


def guarded(s, rest, other_rate=None):
    """A choice of two steps on one rest, of which the second may be none."""
    other = rest if other_rate is None else rest - other_rate * s.g
    return [(s.W, pt.switch(s.n > 1, rest - s.lr * s.g, other))]


def clipped_and_decayed(s):
    norm = pt.sqrt((s.g**2).sum())
    clipped = pt.switch(norm > s.n, s.g * s.n / norm, s.g)
    return [(s.W, s.W - s.lr * (clipped + HALF * s.W))]


# How many dots a loss has, the updates, and the step's in-place outers and dense operations.
OTHER_STEPS = {
    "sum of a cost": (1, lambda s: [(s.W, s.W - s.lr * s.g)], 1, 0),
    "two dots in one loss": (2, lambda s: [(s.W, s.W - s.lr * s.g)], 2, 0),
    "two gradients": (
        2,
        lambda s: [(s.W, s.W - s.lr * (s.gradients[0] + s.gradients[1]))],
        2,
        0,
    ),
    "three gradients, scaled apart": (
        3,
        lambda s: [
            (s.W, s.W - s.lr * (s.gradients[0] + HALF * (s.gradients[1] - s.gradients[2]) / s.n))
        ],
        3,
        0,
    ),
    "decay": (1, lambda s: [(s.W, (1 - s.lr * HALF) * s.W - s.lr * s.g)], 1, 1),
    "decay in the gradient": (1, lambda s: [(s.W, s.W - s.lr * (s.g + HALF * s.W))], 1, 1),
    "momentum": (1, momentum, 1, 1),
    "decay by an array": (1, lambda s: [(s.W, s.W - s.lr * (s.g + s.W * s.V))], 1, 1),
    "guarded, decay": (1, lambda s: guarded(s, (1 - s.lr * HALF) * s.W), 1, 1),
    "guarded, negative": (1, lambda s: guarded(s, -s.W), 1, 1),
    "guarded, divided": (1, lambda s: guarded(s, s.W / (1 + s.lr)), 1, 1),
    "guarded, scaled by one element": (
        1,
        lambda s: guarded(s, s.V.mean(keepdims=True) * s.W),
        1,
        1,
    ),
    "two rates, decay": (1, lambda s: guarded(s, (1 - s.lr * HALF) * s.W, s.n), 1, 1),
    "two gradients less the weights": (
        2,
        lambda s: [(s.W, pt.switch(s.n > 1, s.gradients[0] - s.W, HALF * s.gradients[1] - s.W))],
        2,
        1,
    ),
    "clipped by a choice, decay": (1, clipped_and_decayed, 1, 1),
    "zeros of another shape": (
        1,
        lambda s: [(s.W, s.W - s.lr * (s.g + pt.zeros((s.n.astype(int) * 2, 1, 1, 1), s.dtype)))],
        1,
        0,
    ),
}


COMPILED_STEPS = ("three gradients, scaled apart", "decay")


@pytest.mark.parametrize(
    ("dtype", "mode"),
    [
        pytest.param("float32", "CVM", marks=needs_compiler),
        ("float32", "NUMBA"),
        ("float64", PYTHON),
    ],
)
@pytest.mark.parametrize("name", OTHER_STEPS)
def test_other_steps(name, dtype, mode):
    dots, updates, outers, dense = OTHER_STEPS[name]
    step = Step(
        dtype, dots, cost=lambda y: (y**2).sum() if name == "sum of a cost" else pt.tanh(y).mean()
    )
    if name not in COMPILED_STEPS:
        mode = in_python(mode)
    assert_step(step, updates(step), mode, outers, dense)


@pytest.mark.parametrize("mode", MODES)
def test_momentum_that_moves_the_weights(mode):
    """The velocity is made in place; adding it to the weights is dense, as it is used whole."""
    step = Step("float64")
    velocity = 0.9 * step.V - step.lr * step.g
    updates = [(step.V, velocity), (step.W, step.W + velocity)]
    expected = step.expected(updates)
    function = step.compile(updates, mode)
    nodes = like_weights(function)
    assert len(in_place_outers(nodes)) == 1
    assert sum(is_dense_operation(node) for node in nodes) == 2
    function(*step.values)
    for (variable, _), new in zip(updates, expected, strict=True):
        np.testing.assert_allclose(variable.get_value(), new, rtol=1e-12, atol=1e-12)


# Zeros that an outer may start from, by their shape and dtype.
ZEROS = {
    "allocated": lambda s, x: pt.zeros(x.shape, s.dtype),
    "of a known shape": lambda s, x: pt.zeros((6, 7, 4, 5), s.dtype),
    "like another": lambda s, x: pt.zeros_like(x),
    "a constant": lambda s, x: pt.constant(np.zeros((6, 7, 4, 5), s.dtype)),
    "cast": lambda s, x: pt.zeros(x.shape, "int8").astype(s.dtype),
    "broadcast": lambda s, x: pt.broadcast_to(np.zeros((1, 1, 1, 1), s.dtype), x.shape),
    "negated": lambda s, x: -pt.zeros_like(x),
}


@pytest.mark.parametrize("name", ZEROS)
def test_zeros_of_all_kinds(name):
    """What the outer products of a step were added to is known to be zeros."""
    step = Step("float64")
    y, inputs = step.dots[0], step.dots[0].owner.inputs
    outer = sparse_block_outer(ZEROS[name](step, step.W), inputs[2], y, *inputs[3:])
    updates = [(step.W, step.W - step.lr * (outer + ZEROS[name](step, step.V)))]
    assert_step(step, updates, PYTHON, outers=1, dense=0)


NOT_MERGED = {
    "the gradient is an output": lambda s: ([(s.W, s.W - s.lr * s.g)], [s.g]),
    "the step is clipped": lambda s: ([(s.W, s.W - s.lr * pt.clip(s.g, -1, 1))], []),
    "a scale for each block": lambda s: ([(s.W, s.W - s.V * s.g)], []),
    "a scale for each input block": lambda s: (
        [(s.W, s.W - s.V.sum(axis=1, keepdims=True) * s.g)],
        [],
    ),
    "divided by the gradient": lambda s: ([(s.W, s.W - s.lr / (1 + s.g))], []),
    "divided by an array": lambda s: ([(s.W, s.W - s.lr * s.g / (1 + s.V**2))], []),
    "divided by an array, in a sum": lambda s: ([(s.W, s.W - s.lr * (s.g / s.V + HALF * s.g))], []),
    "an array divided by the gradient": lambda s: ([(s.W, s.W - s.V / (2 + s.g))], []),
    "only a broadcast rest": lambda s: ([(s.W, s.n - s.lr * s.g)], []),
}


@pytest.mark.parametrize("name", NOT_MERGED)
def test_update_must_not_fire(name):
    """The dense gradient is made, from zeros, and subtracted as the user wrote it."""
    step = Step("float32")
    updates, outputs = NOT_MERGED[name](step)
    expected = step.expected(updates)
    function = step.compile(updates, in_python("NUMBA"), outputs)
    (outer,) = [node for node in like_weights(function) if isinstance(node.op, SparseBlockOuter)]
    assert isinstance(outer.inputs[0].owner.op, Alloc)
    assert any(is_dense_operation(node) for node in like_weights(function))
    function(*step.values)
    np.testing.assert_allclose(step.W.get_value(), expected[0], rtol=1e-5, atol=1e-6)


def gemv_problem():
    arrays = Draw(SIZES, 0, "float64").gemv()
    del arrays["o"]
    inputs = symbols(arrays)
    zeros = pt.zeros((inputs["h"].shape[0], inputs["outputIdx"].shape[1], inputs["W"].shape[3]))
    product = sparse_block_gemv(zeros.astype("float64"), *inputs.values())
    return product, inputs, arrays


def compare_with_and_without(inputs, outputs, values, mode):
    """Compile twice, once in Python, and return the function that the rewrites gave."""
    merged = pytensor.function(inputs, outputs, mode=mode)
    plain = pytensor.function(inputs, outputs, mode=PYTHON.excluding("blocksparse"))
    for one, other in zip(merged(*values), plain(*values), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-12)
    return merged


def the_gemv(function):
    (node,) = [n for n in function.maker.fgraph.toposort() if isinstance(n.op, SparseBlockGemv)]
    return node


BIASES = {
    "product + gather": lambda p, gather, c: p + gather,
    "gather + product": lambda p, gather, c: gather + p,
    "c + product + gather": lambda p, gather, c: c + p + gather,
    "gather + (c + product)": lambda p, gather, c: gather + (c + p),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("form", BIASES)
def test_bias_is_what_the_product_starts_from(form, mode):
    if form != "c + product + gather":
        mode = in_python(mode)
    product, inputs, arrays = gemv_problem()
    b, c = pt.dmatrix("b"), pt.dtensor3("c")
    out = BIASES[form](product, b.take(inputs["outputIdx"], axis=0), c)
    rng = np.random.default_rng(1)
    values = [rng.normal(size=(SIZES.oBlocks, SIZES.oSize))]
    variables = [b]
    if "c" in form.split():
        form_shape = (SIZES.batch, SIZES.oWin, SIZES.oSize)
        variables.append(c)
        values.append(rng.normal(size=form_shape))
    elif "(c" in form.split():
        variables.append(c)
        values.append(rng.normal(size=(SIZES.batch, SIZES.oWin, SIZES.oSize)))
    function = compare_with_and_without(
        [*inputs.values(), *variables], [out], [*arrays.values(), *values], mode
    )
    node = the_gemv(function)
    assert node.op.inplace
    assert "AdvancedSubtensor" in str(node.inputs[0].owner) or isinstance(
        node.inputs[0].owner.op, Reshape
    )


@pytest.mark.parametrize("mode", MODES)
def test_bias_of_any_kind(mode):
    """An input cannot be destroyed, but an addition less is an addition less."""
    product, inputs, arrays = gemv_problem()
    c = pt.dtensor3("c")
    value = np.random.default_rng(1).normal(size=(SIZES.batch, SIZES.oWin, SIZES.oSize))
    function = compare_with_and_without(
        [*inputs.values(), c], [product + c], [*arrays.values(), value], mode
    )
    assert the_gemv(function).inputs[0] in function.maker.fgraph.inputs
    assert not any(is_dense_operation(n) for n in function.maker.fgraph.toposort())


BIAS_NOT_MERGED = {
    "a broadcast addend": lambda p, o, c: [p + c[:, :1].sum(axis=(0, 1))],
    "another user of the product": lambda p, o, c: [p + c, (p**2).sum()],
    "the product is an output": lambda p, o, c: [p + c, p],
    "a higher precision": lambda p, o, c: [p.astype("float32") + c],
    "subtracted": lambda p, o, c: [c * 2 - p],
}


@pytest.mark.parametrize("name", BIAS_NOT_MERGED)
def test_bias_must_not_fire(name):
    product, inputs, arrays = gemv_problem()
    c = pt.dtensor3("c")
    outputs = BIAS_NOT_MERGED[name](product, None, c)
    value = np.random.default_rng(1).normal(size=(SIZES.batch, SIZES.oWin, SIZES.oSize))
    function = compare_with_and_without(
        [*inputs.values(), c], outputs, [*arrays.values(), value], in_python("NUMBA")
    )
    assert isinstance(the_gemv(function).inputs[0].owner.op, Alloc)


def test_a_product_that_starts_from_something_keeps_it():
    product, inputs, _ = gemv_problem()
    c, o = pt.dtensor3s("c", "o")
    out = sparse_block_gemv(o, *product.owner.inputs[1:]) + c
    function = pytensor.function([*inputs.values(), c, o], out, mode=in_python("NUMBA"))
    assert the_gemv(function).inputs[0].name == "o"


@pytest.mark.parametrize("mode", MODES)
def test_a_value_used_twice_is_not_destroyed(mode):
    product, inputs, arrays = gemv_problem()
    gathered = pt.exp(product * 2)
    twice = sparse_block_gemv(gathered, *product.owner.inputs[1:])
    compare_with_and_without(list(inputs.values()), [twice, gathered], list(arrays.values()), mode)


@pytest.mark.parametrize("mode", MODES)
def test_a_constant_is_not_destroyed(mode):
    product, inputs, arrays = gemv_problem()
    constant = pt.constant(np.random.default_rng(1).normal(size=(3, 3, 5)))
    out = sparse_block_gemv(constant, *product.owner.inputs[1:])
    function = pytensor.function(list(inputs.values()), out, mode=mode)
    first = function(*arrays.values()).copy()
    np.testing.assert_array_equal(function(*arrays.values()), first)
    assert not the_gemv(function).op.inplace


ALIASES = [
    lambda s: s.W,
    lambda s: s.W * 1,
    lambda s: s.W.sum(),
    lambda s: s.W.T,
    lambda s: pt.tanh(s.W),
]


def check_outputs_of_before_the_step(aliases, mode):
    step = Step("float64")
    outputs = [alias(step) for alias in aliases]
    expected = pytensor.function([], outputs, mode="FAST_COMPILE")()
    function = step.compile([(step.W, step.W - step.lr * step.g)], mode, outputs)
    for one, other in zip(function(*step.values), expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-14)


@pytest.mark.parametrize("mode", MODES)
def test_outputs_that_alias_the_updated_weights(mode):
    """They have the values of before the step: all of them compiled, and each by itself."""
    check_outputs_of_before_the_step(ALIASES, mode)
    for alias in ALIASES:
        check_outputs_of_before_the_step([alias], in_python(mode))


@needs_compiler
def test_debug_mode_on_a_step():
    step = Step("float64", dots=2)
    function = step.compile([(step.W, step.W - step.lr * (step.g + step.W))], "DEBUG_MODE")
    function(*step.values)


NAMES = [
    "local_sparse_block_gemv_bias",
    "local_sparse_block_outer_update",
    "local_inplace_sparse_block_gemv",
    "local_inplace_sparse_block_outer",
    "blocksparse",
]


@pytest.mark.parametrize("excluded", NAMES)
def test_each_rewrite_can_be_excluded(excluded):
    step = Step("float64", dots=2)
    updates = [(step.W, step.W - step.lr * step.g)]
    expected = step.expected(updates)
    function = step.compile(updates, in_python(get_mode("NUMBA").excluding(excluded)))
    ops = [node.op for node in function.maker.fgraph.toposort()]
    gemvs = [op for op in ops if isinstance(op, SparseBlockGemv)]
    outers = [op for op in ops if isinstance(op, SparseBlockOuter)]
    assert any(op.inplace for op in outers) == (
        excluded not in ("local_inplace_sparse_block_outer", "blocksparse")
    )
    assert any(op.inplace for op in gemvs) == (
        excluded not in ("local_inplace_sparse_block_gemv", "blocksparse")
    )
    merged = not any(is_dense_operation(n) for n in like_weights(function))
    assert merged == (excluded not in ("local_sparse_block_outer_update", "blocksparse"))
    function(*step.values)
    np.testing.assert_allclose(step.W.get_value(), expected[0], rtol=1e-12, atol=1e-12)


def test_an_outer_of_a_higher_precision_in_between():
    """It adds to its own dtype alone, though the sum above has that of the outer below."""
    step = Step("float32")
    y, inputs = step.dots[0], step.dots[0].owner.inputs
    wider = sparse_block_outer(
        (step.W - step.lr * step.g).astype("float64"), inputs[2].astype("float64"), y, *inputs[3:]
    )
    new = step.n * step.V + wider.astype("float32")
    expected = step.expected([(step.W, new)])
    function = step.compile([(step.W, new)], in_python("NUMBA"))
    function(*step.values)
    np.testing.assert_allclose(step.W.get_value(), expected[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mode", MODES)
def test_sizes_that_a_dense_sum_would_have_refused(mode):
    """Momentum of another shape than the weights: merged, the sum checks what it checked."""
    step = Step("float64")
    velocity = pytensor.shared(np.zeros((9, 9, 4, 5)), "velocity")
    function = step.compile([(velocity, 0.9 * velocity - step.lr * step.g)], mode)
    with pytest.raises((AssertionError, ValueError)):
        function(*step.values)
    assert not velocity.get_value().any()


def test_only_touched_blocks_see_a_scale_that_is_not_finite():
    step = Step("float32")
    function = step.compile([(step.W, step.W - step.lr * step.g)], "NUMBA")
    before = step.W.get_value()
    step.values[0] = np.nan
    function(*step.values)
    np.testing.assert_array_equal(step.W.get_value()[3:], before[3:])
    assert np.isnan(step.W.get_value()).any()


def test_stack_traces_are_kept():
    with pytensor.config.change_flags(check_stack_trace="raise", traceback__limit=8):
        step = Step("float64")
        updates = [(step.W, step.W - step.lr * (step.g + HALF * step.W))]
        function = step.compile(updates, in_python("NUMBA"))
    for node in function.maker.fgraph.toposort():
        if isinstance(node.op, SparseBlockOuter | SparseBlockGemv):
            assert node.outputs[0].tag.trace


@pytest.mark.parametrize("backend", ["JAX", "PYTORCH", "MLX", "FAST_COMPILE"])
def test_graphs_for_other_backends_stay_valid(backend):
    """What these modes' rewrites make of a step, run by Python: right, and nothing in place.

    Without those that import the backend, which may not be installed.
    """
    step = Step("float64", dots=2)
    updates = [(step.W, step.W - step.lr * (step.g + HALF * step.W))]
    expected = step.expected(updates)
    rewrites = get_mode(backend)._optimizer.excluding("jax", "mlx", "pytorch")
    function = step.compile(updates, Mode("py", rewrites))
    assert not any(
        node.op.inplace
        for node in function.maker.fgraph.toposort()
        if isinstance(node.op, SparseBlockGemv | SparseBlockOuter)
    )
    function(*step.values)
    np.testing.assert_allclose(step.W.get_value(), expected[0], rtol=1e-12, atol=1e-12)


# A random linear form is a tree: leaves are weights, gradients and velocities.
LEAVES = ["W", "V", "g0", "g1", "W transposed twice"]
forms = st.recursive(
    st.sampled_from(LEAVES),
    lambda form: st.one_of(
        st.tuples(st.sampled_from(["add", "sub"]), form, form),
        st.tuples(st.sampled_from(["neg", "square"]), form),
        st.tuples(st.sampled_from(["mul", "div"]), form, st.sampled_from([0.5, -3.0, "lr", "n"])),
    ),
    max_leaves=6,
)


def build(form, step):
    leaves = {
        "W": step.W,
        "V": step.V,
        "g0": step.gradients[0],
        "g1": step.gradients[1],
        "W transposed twice": step.W.transpose(1, 0, 3, 2).transpose(1, 0, 3, 2),
        "lr": step.lr,
        "n": step.n,
    }
    if not isinstance(form, tuple):
        return leaves.get(form, form)
    name, *arguments = form
    arguments = [build(argument, step) for argument in arguments]
    operations = {"sub": pt.sub, "add": pt.add, "neg": pt.neg, "mul": pt.mul}
    operations |= {"div": pt.true_div, "square": pt.sqr}
    return operations[name](*arguments)


@settings(max_examples=30, deadline=None)
@given(form=forms, second=st.one_of(st.none(), forms))
@example(form=("div", ("add", "g0", "g1"), "n"), second=None)
def test_random_linear_forms(form, second):
    """With and without the rewrites, one or two updates at once, the values agree."""
    step = Step("float64", dots=2)
    updates = [(step.W, build(form, step))]
    if second is not None:
        updates.append((step.V, build(second, step)))
    expected = step.expected(updates)
    # PyTensor 3.0's Python code for a reciprocal that is fused has the precision of float32.
    step.compile(updates, Mode("py", "fast_run").excluding("fusion"))(*step.values)
    for (variable, _), new in zip(updates, expected, strict=True):
        np.testing.assert_allclose(variable.get_value(), new, rtol=1e-9, atol=1e-9)


@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_random_graphs(data):
    """Products and outers added up, scaled and transposed, then squared and differentiated."""
    arrays = Draw(SIZES, 0, "float64").gemv()
    inputs = symbols(arrays)
    o, W, h, inputIdx, outputIdx = inputs.values()
    zeros = pt.zeros_like(W)
    values = [W, sparse_block_outer(zeros, h, o, inputIdx, outputIdx)]
    for _ in range(data.draw(st.integers(1, 4))):
        x, y = (data.draw(st.sampled_from(values)) for _ in range(2))
        scale = data.draw(st.sampled_from([0.5, -1.0, 3.0]))
        twice = x.transpose(1, 0, 3, 2).transpose(1, 0, 3, 2)
        outer = sparse_block_outer(y, h, o, inputIdx, outputIdx, scale)
        values.append(
            data.draw(st.sampled_from([x + y, x - scale * y, -x / scale, twice, outer, x * y]))
        )
    product = sparse_block_gemv(pt.zeros_like(o), values[-1], h, inputIdx, outputIdx)
    cost = ((product + o) ** 2).sum()
    outputs = [cost, values[-1], pt.grad(cost, W, disconnected_inputs="ignore")]
    results = []
    for mode in (Mode("py", "fast_run"), Mode("py", "fast_run").excluding("blocksparse")):
        function = pytensor.function(list(inputs.values()), outputs, mode=mode)
        results.append(function(*arrays.values()))
    for one, other in zip(*results, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-9 * abs(other).max())
