"""Optimizers: each against a loop over the blocks in use, in place, and against its namesakes."""

from functools import cache
from importlib.util import find_spec
from itertools import cycle

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from cases import MODES, in_python, needs_compiler
from pytensor.compile.mode import Mode
from pytensor.graph.replace import clone_replace
from watch import Watch

from blocksparse_ops import (
    BlockGradient,
    block_gradient,
    sparse_block_dot,
    sparse_block_take,
    updates,
)
from blocksparse_ops.update_blocks import UpdateBlocks

OPTIMIZERS = {
    "sgd": {},
    "momentum": {"momentum": 0.8},
    "nesterov_momentum": {"momentum": 0.8},
    "adagrad": {"epsilon": 1e-3},
    "rmsprop": {"rho": 0.8, "epsilon": 1e-3},
    "adam": {"beta1": 0.8, "beta2": 0.9, "epsilon": 1e-4},
    "adamw": {"weight_decay": 0.1},
}
STATES = {"sgd": 0, "adam": 2, "adamw": 2}  # of others one
RATE = 0.05
GRAPHS = ["FAST_COMPILE", in_python("CVM")]
COMPILED = [pytest.param("CVM", marks=needs_compiler), "NUMBA"]


def rule(name, t, W, g, states, momentum=0.9, epsilon=None, rho=0.9, **betas):
    """Step number t of an array, and of its states, which change in place."""
    if name == "sgd":
        return W - RATE * g
    if name in ("momentum", "nesterov_momentum"):
        [v] = states
        v[...] = momentum * v - RATE * g
        return W + v if name == "momentum" else W + momentum * v - RATE * g
    if name in ("adagrad", "rmsprop"):
        [s] = states
        s[...] = s + g**2 if name == "adagrad" else rho * s + (1 - rho) * g**2
        return W - RATE * g / np.sqrt(s + epsilon)
    beta1, beta2 = betas.get("beta1", 0.9), betas.get("beta2", 0.999)
    m, s = states
    m[...] = beta1 * m + (1 - beta1) * g
    s[...] = beta2 * s + (1 - beta2) * g**2
    decayed = W * (1 - RATE * betas.get("weight_decay", 0))
    root = np.sqrt(s / (1 - beta2**t)) + (epsilon or 1e-8) / np.sqrt(1 - beta2**t)
    return decayed - RATE * m / (1 - beta1**t) / root


class Model:
    """Weights and a table, of which five steps use some blocks, some of them several times."""

    batch, window = 3, 2

    def __init__(self, dtype="float64", blocks=6, indices=None):
        self.rng, self.dtype, self.blocks = np.random.default_rng(0), dtype, blocks
        self.W = pytensor.shared(self.values(blocks, 5, 4, 3), "W")
        self.table = pytensor.shared(self.values(blocks, 4), "table")
        self.scale = pytensor.shared(self.values(3), "scale")
        self.params = [self.W, self.table, self.scale]
        self.i, self.j = indices or pt.lmatrices("i", "j")
        self.loss = self.loss_in(dtype)

    def loss_in(self, dtype):
        h = sparse_block_take(self.table, self.i).astype(dtype)
        y = sparse_block_dot(self.W, h, self.i, None, self.j)
        return ((y * self.scale - 1) ** 2).mean()

    def values(self, *shape):
        return self.rng.normal(size=shape).astype(self.dtype)

    def indices(self):
        """Of less blocks than there are; negative ones and repeats among them."""
        i = self.rng.integers(-self.blocks, -2, (self.batch, self.window))
        return i, self.rng.integers(0, 3, (self.batch, self.window))

    def compile(self, new, mode, outputs=None):
        return pytensor.function([self.i, self.j], outputs, updates=new, mode=mode)


@cache
def dense_gradients(dtype):
    """A function of the indices, of the weights and of the scale."""
    model = Model(dtype)
    params = [model.W, model.scale]
    values = [x.type() for x in params]
    dense = clone_replace(pytensor.grad(model.loss, params), dict(zip(params, values, strict=True)))
    inputs = [model.i, model.j, *values]
    return pytensor.function(inputs, dense, mode=in_python("FAST_COMPILE"))


def address_of(x):
    return x.get_value(borrow=True, return_internal_type=True).ctypes.data


def nodes_of(function):
    return function.maker.fgraph.apply_nodes


def tolerance(dtype):
    return {"rtol": 2e-4, "atol": 2e-5} if dtype == "float32" else {"rtol": 1e-10, "atol": 1e-12}


class Followed:
    """What an optimizer does to a model, beside what NumPy makes of it over the blocks in use."""

    def __init__(self, name, dtype, indices):
        self.name, self.options, self.model = name, OPTIMIZERS[name], Model(dtype, indices=indices)
        self.params = [self.model.W, self.model.scale]
        self.new = getattr(updates, name)(self.model.loss, self.params, RATE, **self.options)
        states = [x for x in self.new if x not in self.params and x.ndim]
        self.each = STATES.get(name, 1)
        assert len(states) == len(self.params) * self.each
        self.states = {
            x: states[k * self.each : (k + 1) * self.each] for k, x in enumerate(self.params)
        }
        self.values = {x: x.get_value() for x in (*self.params, *states)}
        self.places = {x: address_of(x) for x in self.values}

    def move(self, t, i, j):
        """Step number t of the values, in place."""
        named = np.zeros((self.model.blocks, 5), bool)
        for row, columns in zip(i, j, strict=True):
            named[np.ix_(row, columns)] = True
        in_use = named, np.ones(3, bool)
        values = [self.values[x] for x in self.params]
        gradients = dense_gradients(self.model.dtype)(i, j, *values)
        for x, g, at in zip(self.params, gradients, in_use, strict=True):
            parts = [self.values[state][at] for state in self.states[x]]
            part = rule(self.name, t, self.values[x][at], g[at], parts, **self.options)
            for y, new in zip((x, *self.states[x]), (part, *parts), strict=True):
                self.values[y][at] = new
        self.rests = {y: (~named, y.get_value()[~named]) for y in self.of_W}

    @property
    def of_W(self):
        return self.model.W, *self.states[self.model.W]

    def check(self):
        """The values, and of blocks that are not in use every bit."""
        for x, value in self.values.items():
            np.testing.assert_allclose(x.get_value(), value, **tolerance(self.model.dtype))
        for y, (rest, before) in self.rests.items():
            np.testing.assert_array_equal(y.get_value()[rest], before)


@pytest.mark.parametrize(
    ("mode", "dtypes"),
    [
        ("FAST_COMPILE", ("float32", "float64")),
        ("FAST_COMPILE", ("float64", "float32")),
        pytest.param("CVM", ("float32", "float64"), marks=needs_compiler),
        pytest.param("CVM", ("float64", "float32"), marks=needs_compiler),
        ("NUMBA", ("float32", "float64")),
        ("NUMBA", ("float64", "float32")),
    ],
)
def test_five_steps(mode, dtypes):
    """As in NumPy, over the blocks in use; of all others every bit stays, in all states, too.

    In one function, of parameters of either dtype in turn.
    """
    indices = pt.lmatrices("i", "j")
    followed = [
        Followed(name, dtype, indices)
        for name, dtype in zip(OPTIMIZERS, cycle(dtypes), strict=False)
    ]
    new = {x: value for each in followed for x, value in each.new.items()}
    train = pytensor.function(indices, updates=new, mode=mode)
    for t in range(1, 6):
        i, j = followed[0].model.indices()
        for each in followed:
            each.move(t, i, j)
        train(i, j)
        for each in followed:
            each.check()
    for each in followed if mode != "FAST_COMPILE" else ():
        assert [address_of(x) for x in each.of_W] == [each.places[x] for x in each.of_W]


@pytest.mark.parametrize(
    ("mode", "name"), [("CVM", "adam"), *(("NUMBA", name) for name in OPTIMIZERS)]
)
def test_in_place(mode, name):
    """No node makes a value of the weights' size but those that write into them."""
    model = Model("float32", blocks=400)
    model.params.remove(model.scale)
    new = getattr(updates, name)(model.loss, model.params, np.float32(RATE))
    watch = Watch(mode, 400 * 5 * 4 * 3)
    train = model.compile(new, watch.mode)
    train(*model.indices())
    steps = [node.op for node in nodes_of(train) if isinstance(node.op, UpdateBlocks)]
    assert len(steps) == (0 if name == "sgd" else 2)
    assert all(op.inplace and len(op.writes) == STATES.get(name, 1) + 1 for op in steps)
    assert [list(node.op.destroy_map) for node in watch.nodes] == [
        list(range(STATES.get(name, 1) + 1))
    ]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_loss_of_another_precision(name):
    """What is moved keeps its dtype, by blocks and densely, and moves as by a loss of its own."""
    results = []
    for dtype in ("float32", "float64"):
        model = Model("float32")
        loss = model.loss_in(dtype) + (model.scale * model.loss_in(dtype)).sum()
        new = getattr(updates, name)(loss, model.params, RATE)
        train = model.compile(new, in_python("FAST_COMPILE"))
        train(*model.indices())
        results.append([x.get_value() for x in new])
    for one, other in zip(*results, strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_allclose(one, other, **tolerance("float32"))


@pytest.mark.skipif(find_spec("pymc") is None, reason="needs pymc")
@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name != "adamw"])
def test_all_blocks_in_use_are_as_in_pymc(name):
    from pymc.variational import updates as of_pymc

    results = []
    for optimizers in (updates, of_pymc):
        model = Model(blocks=3)
        new = getattr(optimizers, name)(model.loss, model.params, RATE, **OPTIMIZERS[name])
        train = model.compile(new, in_python("FAST_COMPILE"))
        for _ in range(5):
            train([[0, 1, 2]], [[4, 3, 2, 1, 0]])
        results.append([x.get_value() for x in model.params])
    for ours, theirs in zip(*results, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-9)


@pytest.mark.skipif(find_spec("torch") is None, reason="needs torch")
@pytest.mark.parametrize("mode", COMPILED)
def test_adam_is_sparse_adam(mode):
    import torch

    model = Model("float32")
    loss = (sparse_block_take(model.table, model.i) ** 2).sum()
    new = updates.adam(loss, [model.table], RATE)
    train = pytensor.function([model.i], updates=new, mode=mode)
    embedding = torch.nn.Embedding(6, 4, sparse=True)
    embedding.weight.data = torch.tensor(model.table.get_value())
    optimizer = torch.optim.SparseAdam(embedding.parameters(), lr=RATE)
    for _ in range(5):
        i = model.rng.integers(0, 4, (3, 2))
        train(i)
        optimizer.zero_grad()
        (embedding(torch.tensor(i)) ** 2).sum().backward()
        optimizer.step()
        expected = embedding.weight.detach().numpy()
        np.testing.assert_allclose(model.table.get_value(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mode", [*MODES[:2], in_python("NUMBA")])
def test_several_uses(mode):
    """A block that two products use has its state moved once, by the sum of both gradients."""
    model = Model()
    transposed = sparse_block_dot(
        model.W.transpose(1, 0, 3, 2), np.ones((3, 2, 3)), model.j, None, model.i
    )
    loss = model.loss + (transposed**2).sum()
    new = updates.adagrad(loss, [model.W], RATE)
    [g] = updates.get_or_compute_grads(loss, [model.W])
    i, j = model.indices()
    run = pytensor.function([model.i, model.j], g.dense(model.W.shape), mode=mode)
    dense, W = run(i, j), model.W.get_value()
    train = model.compile(new, mode)
    train(i, j)
    expected = rule("adagrad", 1, W, dense, [np.zeros_like(W)], epsilon=1e-6)
    np.testing.assert_allclose(model.W.get_value(), expected)
    if mode != "FAST_COMPILE":
        assert any(isinstance(node.op, UpdateBlocks) for node in nodes_of(train))


@pytest.mark.parametrize("mode", COMPILED)
def test_what_is_repeated_in_a_block(mode):
    """Values, and states, with one row or one column for all of a block."""
    rows, columns = 4, 3
    gradients_are_one = np.ones((1, 1, rows))
    steps, factors = {}, {}
    for shape, is_state in (((1, columns), False), ((rows, 1), False), ((1, columns), True)):
        factor = np.arange(1.0, 1 + np.prod(shape)).reshape(shape)
        state = np.broadcast_to(factor, (2, 2, *shape)).copy()
        W = pytensor.shared(np.zeros((2, 2, rows, columns)))
        y = sparse_block_dot(W, gradients_are_one, [[1]], None, [[0]])
        g = block_gradient(y.sum(), W)
        by = g.of(pytensor.shared(state, shape=state.shape)) if is_state else factor
        steps[W] = g.put(W, g.of(W) - by * g.values)
        factors[W] = factor
    pytensor.function([], updates=steps, mode=mode)()
    for W, factor in factors.items():
        expected = np.zeros(W.get_value().shape)
        expected[1, 0] = -factor
        np.testing.assert_array_equal(W.get_value(), expected)


@pytest.mark.parametrize("mode", COMPILED)
def test_all_or_nothing(mode):
    """An index out of range in the second of two losses: no parameter and no state has moved."""
    first, second = Model(), Model()
    new = updates.adam(first.loss, first.params, RATE)
    new.update(updates.momentum(second.loss, second.params, RATE))
    inputs = [first.i, first.j, second.i, second.j]
    train = pytensor.function(inputs, updates=new, mode=mode)
    good = first.indices()
    train(*good, *good)
    before = [x.get_value() for x in new]
    i, j = first.indices()
    for wrong in ((i, j, i, j + 3), (i, j + 3, i, j), (i, j, i - 5, j)):
        with pytest.raises(IndexError):
            train(*wrong)
        for x, value in zip(new, before, strict=True):
            np.testing.assert_array_equal(x.get_value(), value)


def test_clip_by_global_norm():
    model = Model()
    dense = pytensor.grad(model.loss, model.params)
    grads = updates.get_or_compute_grads(model.loss, model.params)
    assert [isinstance(g, BlockGradient) for g in grads] == [True, True, False]
    for max_norm in (1e-3, np.float64(1e6), pt.constant(0.1)):
        clipped = updates.clip_by_global_norm(grads, max_norm)
        as_arrays = [
            g.dense(x.shape) if isinstance(g, BlockGradient) else g
            for g, x in zip(clipped, model.params, strict=True)
        ]
        run = model.compile(None, in_python("NUMBA"), [*as_arrays, *dense])
        values = run(*model.indices())
        actual, expected = values[:3], values[3:]
        norm = np.sqrt(sum((g**2).sum() for g in expected))
        limit = pt.as_tensor(max_norm).eval()
        for g, other in zip(actual, expected, strict=True):
            np.testing.assert_allclose(g, other * min(1, limit / norm))


@pytest.mark.parametrize(
    "rate",
    [
        np.float64(RATE),
        pytensor.shared(RATE, "rate"),
        pt.constant(RATE) * pt.ones(()),
        pytensor.shared(np.float32(RATE)),
    ],
    ids=["number", "shared", "graph", "float32"],
)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_rates(name, rate):
    """Of any precision: parameters keep theirs."""
    model = Model("float32")
    new = getattr(updates, name)(model.loss, model.params, rate)
    assert all(value.dtype == x.dtype for x, value in new.items())
    before = model.W.get_value()
    model.compile(new, in_python("NUMBA"))(*model.indices())
    assert np.abs(model.W.get_value() - before).max() > 1e-4


@pytest.mark.parametrize("floatX", ["float32", "float64"])
def test_numbers_are_in_double_precision(floatX):
    """Where PyTensor's own are in single precision, in which 1 - 1e-9 is 1, and 1e-60 is 0."""
    table = pytensor.shared(np.ones((3, 1)), "table")
    loss = (sparse_block_take(table, [1]) ** 2).sum()
    with pytensor.config.change_flags(floatX=floatX):
        new = updates.adam(loss, [table], RATE, beta2=1 - 1e-9, epsilon=1e-12)
        grads = updates.get_or_compute_grads(loss, [table])
        [clipped] = updates.clip_by_global_norm(grads, 1e-60)
    [norm] = pytensor.function([], [clipped.values], updates=new, mode="FAST_COMPILE")()
    np.testing.assert_allclose(norm, [[[1e-60]]])
    [squares] = [x for x in new if x.name == "table.adam.squares"]
    np.testing.assert_allclose(squares.get_value()[1], 4e-9, rtol=1e-6)
    np.testing.assert_allclose(table.get_value()[1], 1 - RATE, rtol=1e-6)


def test_states_are_found_by_their_names():
    model = Model()
    new = updates.adam(model.loss, model.params, RATE)
    saved = {x.name: x.get_value() for x in new}
    assert {"W", "W.adam.mean", "W.adam.squares", "table.adam.mean", "adam.steps"} <= set(saved)
    assert len(saved) == len(new) == 3 * 3 + 1
    model.compile(new, in_python("FAST_COMPILE"))(*model.indices())
    assert [x.get_value() for x in new if x.name == "adam.steps"] == [1]
    for x in new:
        x.set_value(saved[x.name])


def test_without_arguments_it_is_an_optimizer():
    model = Model()
    by_keyword = updates.adam(learning_rate=RATE, beta1=0.5)
    assert list(map(str, by_keyword(model.loss, model.params))) == list(
        map(str, updates.adam(model.loss, model.params, RATE, beta1=0.5))
    )
    with pytest.raises(ValueError, match="Give both `loss_or_grads` and `params`"):
        updates.sgd(model.loss)


def test_wrong_params_are_told():
    model = Model()
    with pytest.raises(ValueError, match="is no shared variable"):
        updates.sgd(model.loss, [model.W * 2])
    with pytest.raises(ValueError, match="1 gradients for 2 params"):
        updates.adam([model.loss], [model.W, model.table])
    with pytest.raises(TypeError, match="params: counts has dtype int64"):
        updates.adam(model.loss, [pytensor.shared(np.zeros((6, 4), "int64"), "counts")])
    for name in OPTIMIZERS:
        with pytest.raises(TypeError, match="loss_or_grads is 5; expected a scalar variable"):
            getattr(updates, name)(5, [model.W])


@pytest.mark.parametrize("value", ["0.1", None, 1j], ids=str)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_wrong_numbers_are_told(name, value):
    model = Model()
    for argument in ("learning_rate", *OPTIMIZERS[name]):
        with pytest.raises(TypeError, match=f"^{argument} is {value!r}; expected a real number"):
            getattr(updates, name)(model.loss, model.params, **{argument: value})


def test_params_of_an_iterator():
    model = Model()
    new = updates.adam(model.loss, iter(model.params))
    assert set(model.params) < set(new)


@pytest.mark.parametrize("mode", GRAPHS)
def test_two_uses_of_which_one_has_one_block(mode):
    table, i, j = pytensor.shared(np.ones((4, 3)), "table"), *pt.lvectors("i", "j")
    loss = sum((sparse_block_take(table, index) ** 2).sum() for index in (i, j))
    train = pytensor.function([i, j], updates=updates.momentum(loss, [table], 0.25), mode=mode)
    train([0, 1], [2])
    np.testing.assert_array_equal(table.get_value()[:, 0], [0.5, 0.5, 0.5, 1])
    train([0], [0])
    np.testing.assert_allclose(table.get_value()[:, 0], [-0.45, 0.5, 0.5, 1])


def read_only():
    values = np.ones((5, 2))
    values.flags.writeable = False
    return values


@pytest.mark.parametrize(
    "values", [read_only(), np.broadcast_to(1.0, (5, 2))], ids=["read", "view"]
)
@pytest.mark.parametrize("mode", [*COMPILED, in_python("NUMBA")])
def test_an_array_that_may_not_be_written(mode, values):
    """A read-only one stays as it is, and of a view that repeats an element not all change."""
    table = pytensor.shared(values, "table", borrow=True)
    new = updates.momentum((sparse_block_take(table, [3, 1]) ** 2).sum(), [table], 0.25)
    pytensor.function([], updates=new, mode=mode)()
    np.testing.assert_array_equal(table.get_value()[:, 0], [1, 0.5, 1, 0.5, 1])
    np.testing.assert_array_equal(values, np.ones((5, 2)))


def blocks_of(model):
    """A gradient whose blocks the test can choose."""
    [g] = updates.get_or_compute_grads(model.loss, [model.W])
    return g


@pytest.mark.parametrize("mode", MODES)
def test_own_rules(mode):
    """A value for each row of a block, others' values, an output that is no new variable."""
    model = Model("float32")
    g, of_rows = blocks_of(model), pt.tensor3("of_rows", dtype="float32", shape=(None, None, 1))
    other = pytensor.shared(model.values(6, 5, 4, 3), "other")
    new = g.put(model.W, g.of(model.W) * of_rows + 2 * g.of(other) - np.float32(0.5))
    i, j = model.indices()
    f = pytensor.function([model.i, model.j, of_rows], [new, *g[:2]], mode=mode)
    named = {(a % 6, b) for row, columns in zip(i, j, strict=True) for a in row for b in columns}
    rows = model.values(len(named), 4, 1)
    result, *blocks = f(i, j, rows)
    expected = model.W.get_value()
    expected[*blocks] = expected[*blocks] * rows + 2 * other.get_value()[*blocks] - 0.5
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6)
    assert set(zip(*blocks, strict=True)) == named


@pytest.mark.parametrize("mode", COMPILED)
@pytest.mark.parametrize(
    ("shape", "error"), [((6, 5, 4, 2), ValueError), ((6, 2, 4, 3), IndexError)]
)
def test_arrays_of_other_shapes_are_told(mode, shape, error):
    model = Model("float32")
    other = pytensor.shared(model.values(*shape), "other")
    g = blocks_of(model)
    f = model.compile({other: g.put(other, 2 * g.values)}, mode)
    before = other.get_value()
    with pytest.raises(error, match="Give what has the shape of the weights"):
        f(*model.indices())
    np.testing.assert_array_equal(other.get_value(), before)


RULES = {
    "twice": lambda g, W: g.put(g.put(W, 2 * g.values), 3 * g.values + g.of(W)),
    "one value": lambda g, W: g.put(W, pt.ones((1, 1, 1)) * pt.exp(g.values.sum())),
    "two arrays": lambda g, W: g.put(W, g.values[::-1]) + g.put(W, g.of(W) * g.of(W + 1)),
    "of another precision": lambda g, W: g.put(W.astype("float64"), g.values + np.float32(1)),
    "views": lambda g, W: g.put(W[::-1, ::-1][::-1, ::-1], pt.sqrt(abs(g.of(W)))),
    "of a header": lambda g, W: g.put(W, pt.erfcx(g.values)),
}
COMPILED_RULES = ("of another precision", "views")


@pytest.mark.parametrize(
    ("mode", "name"),
    [
        *((in_python("NUMBA"), name) for name in RULES),
        *(
            pytest.param("CVM", name, marks=needs_compiler)
            for name in (*COMPILED_RULES, "of a header")
        ),
        *(("NUMBA", name) for name in COMPILED_RULES),
    ],
)
def test_other_rules(mode, name):
    """With the rewrites as without."""
    model = Model("float32")
    result = RULES[name](blocks_of(model), model.W)
    indices = model.indices()
    actual = model.compile(None, mode, result)(*indices)
    without = Mode("py", "fast_run").excluding("blocksparse")
    np.testing.assert_allclose(actual, model.compile(None, without, result)(*indices), rtol=1e-5)
