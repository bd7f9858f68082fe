"""A function that raises has changed no shared variable, whichever op found what is wrong."""

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from cases import MODES, in_python, needs_compiler
from pytensor import ifelse
from pytensor.compile.ops import DeepCopyOp
from pytensor.raise_op import CheckAndRaise

from blocksparse_ops import (
    SparseBlockGemv,
    SparseBlockOuter,
    sparse_block_dot,
    sparse_block_outer,
)
from blocksparse_ops.part import SparseBlockOuterInPart
from blocksparse_ops.zeros import zeros_like

BLOCKS, SIZE, BATCH, WINDOW = 5, 2, 6, 2

# The order is one of the graph: most run in Python what a mode's rewrites give.
GRAPHS = [
    pytest.param(lambda: in_python("CVM"), id="CVM", marks=needs_compiler),
    pytest.param(lambda: in_python("NUMBA"), id="NUMBA"),
]


def state_of(variable):
    value = variable.get_value()
    return value.tobytes() if isinstance(value, np.ndarray) else value.bit_generator.state


def weights(rng, *names):
    return [pytensor.shared(rng.normal(size=(BLOCKS, BLOCKS, SIZE, SIZE)), name) for name in names]


class Problem:
    """Values, and as many indices as are wanted, each of which can be made wrong."""

    def __init__(self, indices):
        self.rng = np.random.default_rng(0)
        self.h = pt.tensor3("h")
        self.index = [pt.lmatrix(f"index{k}") for k in range(indices)]
        self.inputs = [self.h, *self.index]

    def values(self, wrong=None):
        values = [self.rng.normal(size=(BATCH, WINDOW, SIZE))]
        values += [self.rng.integers(-2, 3, (BATCH, WINDOW)) for _ in self.index]
        if wrong is not None:
            values[1 + wrong][-1, -1] = 9
        return values

    def compile(self, updates, mode, outputs=None):
        return pytensor.function(
            self.inputs, outputs, updates=updates, mode=mode, on_unused_input="ignore"
        )

    def check(self, updates, mode, outputs=None):
        """Each index wrong in turn changes nothing, and none wrong changes all variables."""
        function = self.compile(updates, mode, outputs)
        variables = [variable for variable, _ in updates]
        before = [state_of(variable) for variable in variables]
        for k in range(len(self.index)):
            with pytest.raises(IndexError, match="= 9 is out of range"):
                function(*self.values(wrong=k))
            assert [state_of(variable) for variable in variables] == before
        function(*self.values())
        assert all(state_of(x) != old for x, old in zip(variables, before, strict=True))
        return function


def step(variables, loss):
    return [
        (variable, variable - 0.1 * gradient)
        for variable, gradient in zip(variables, pt.grad(loss, variables), strict=True)
    ]


def layers(problem, count, several):
    """The losses of layers on layers, and a step in all parameters, one of which is dense."""
    Ws = weights(problem.rng, *(f"W{k}" for k in range(count)))
    bs = [pytensor.shared(problem.rng.normal(size=(BLOCKS, SIZE)), f"b{k}") for k in range(count)]
    scale = pytensor.shared(problem.rng.normal(size=SIZE), "scale")
    h, losses = problem.h, []
    for W, b, i, j in zip(Ws, bs, problem.index[:-1], problem.index[1:], strict=True):
        h = pt.tanh(sparse_block_dot(W, h, i, b, j) * scale)
        losses.append((h**2).mean())
    if not several:
        return losses[-1:], step([*Ws, *bs, scale], losses[-1])
    updates = [u for W, b, loss in zip(Ws, bs, losses, strict=True) for u in step([W, b], loss)]
    return losses, updates + step([scale], sum(losses))


def checks(function):
    """The nodes that check what an outer in place would find too late."""
    return [
        node
        for node in function.maker.fgraph.apply_nodes
        if isinstance(node.op, CheckAndRaise) and "blocks without" in node.op.msg
    ]


@pytest.mark.parametrize("mode", GRAPHS)
@pytest.mark.parametrize("output", [True, False], ids=["with output", "without"])
@pytest.mark.parametrize("several", [True, False], ids=["several losses", "one loss"])
@pytest.mark.parametrize("count", [2, 3])
def test_layers(count, several, output, mode):
    """No op is added: the products refuse what the outers would."""
    problem = Problem(count + 1)
    losses, updates = layers(problem, count, several)
    function = problem.check(updates, mode(), losses if output else None)
    assert not checks(function)
    assert not any(isinstance(n.op, DeepCopyOp) for n in function.maker.fgraph.apply_nodes)


@pytest.mark.parametrize("mode", MODES)
def test_layers_compiled(mode):
    problem = Problem(4)
    _, updates = layers(problem, 3, several=True)
    problem.check(updates, mode)


@pytest.mark.parametrize("mode", GRAPHS)
def test_gradients_in_the_input_of_a_layer(mode):
    """Where the product is not computed, they refuse what the outer in its weights would."""
    problem = Problem(3)
    first, last = weights(problem.rng, "first", "last")
    factor = pytensor.shared(problem.rng.normal(size=(BATCH, WINDOW, SIZE)), "factor")
    i, j, k = problem.index
    h = pt.tanh(sparse_block_dot(first, problem.h, i, None, j))
    loss = (factor * sparse_block_dot(last, h, j, None, k)).sum()
    function = problem.check(step([first, last], loss), mode())
    assert not checks(function)


@pytest.mark.parametrize("mode", GRAPHS)
def test_products_that_are_not_computed(mode):
    """Of a linear loss the gradients are all that is left."""
    problem = Problem(3)
    i, j, k = problem.index
    W, V = weights(problem.rng, "W", "V")
    loss = sum(
        sparse_block_dot(*x, None, y).sum()
        for *x, y in ((W, problem.h, i, j), (V, problem.h, i, k))
    )
    function = problem.check(step([W, V], loss), mode())
    assert len(checks(function)) == 2


@pytest.mark.parametrize("mode", GRAPHS)
def test_weights_that_are_used_twice(mode):
    """The second outer of a chain is checked before the first."""
    problem = Problem(3)
    i, j, k = problem.index
    [W] = weights(problem.rng, "W")
    loss = sum(sparse_block_dot(W, problem.h, i, None, index).sum() for index in (j, k))
    problem.check(step([W], loss), mode())


@pytest.mark.parametrize("mode", GRAPHS)
def test_weights_that_decay(mode):
    """They are scaled in place before the outer; the product over them checks for it."""
    problem = Problem(2)
    [W] = weights(problem.rng, "W")
    loss = (sparse_block_dot(W, problem.h, problem.index[0], None, problem.index[1]) ** 2).sum()
    function = problem.check([(W, 0.99 * W - 0.1 * pt.grad(loss, W))], mode())
    assert not checks(function)
    outers = [n for n in function.maker.fgraph.apply_nodes if isinstance(n.op, SparseBlockOuter)]
    assert [node.op.inplace for node in outers] == [True]


@pytest.mark.parametrize("mode", GRAPHS)
def test_a_scale_that_is_ready_late(mode):
    """It is computed in place of what a node reads that writes into the weights: a check that
    needed it would come after that node."""
    problem = Problem(2)
    W, V = weights(problem.rng, "W", "V")
    g = sparse_block_outer(zeros_like(W), problem.h, problem.h, *problem.index)
    updates = [(W, (W - 3 * g) * (1 + W.sum() / 100)), (V, W / 3 + V * (1 + V.sum() / 100))]
    problem.check(updates, mode())


@pytest.mark.parametrize("mode", GRAPHS)
def test_rows_that_are_ready_late(mode):
    """What computes them writes into other parameters, of which it spares the old values."""
    problem = Problem(2)
    [W] = weights(problem.rng, "W")
    rows = pytensor.shared(problem.rng.normal(size=(BATCH, WINDOW, SIZE)), "rows")
    y = pt.tanh(rows * problem.h)
    updates = [(W, sparse_block_outer(W, problem.h, y, *problem.index)), (rows, rows - 0.1 * y)]
    check_copies(problem, updates, mode())


@pytest.mark.parametrize("mode", GRAPHS)
def test_rows_that_are_ready_after_the_weights(mode):
    """They are computed in place of what scales the weights, which are scaled in a copy."""
    problem = Problem(2)
    [W] = weights(problem.rng, "W")
    sums = pt.cumsum(problem.h, axis=0)
    scaled = W * sums[0, 0, 0]
    updates = [(W, sparse_block_outer(scaled, problem.h, pt.tanh(sums), *problem.index))]
    check_copies(problem, updates, mode())


@pytest.mark.parametrize("mode", GRAPHS)
def test_a_product_in_place_of_what_a_step_reads(mode):
    """It must run after that step, which spares the old values."""
    problem = Problem(2)
    [W] = weights(problem.rng, "W")
    rows = pytensor.shared(problem.rng.normal(size=(BATCH, WINDOW, SIZE)), "rows")
    sums = pt.cumsum(problem.h, axis=0)
    y = SparseBlockGemv()(sums, W, problem.h, *problem.index)
    check_copies(problem, [(rows, rows + sums)], mode(), y.sum())


@pytest.mark.parametrize("mode", GRAPHS)
def test_a_number_that_is_counted(mode):
    """What depends on its new value raises before the old one is lost."""
    problem = Problem(2)
    [W] = weights(problem.rng, "W")
    steps = pytensor.shared(np.int64(0), "steps")
    h = problem.h / (steps + 1)
    y = sparse_block_dot(W, h, problem.index[0], None, problem.index[1])
    check_copies(problem, [(steps, steps + 1)], mode(), y.sum())


@pytest.mark.parametrize("mode", GRAPHS)
def test_an_outer_into_old_values(mode):
    """They are needed no more, but for an error: what adds to them adds to a copy."""
    problem = Problem(4)
    W, V = weights(problem.rng, "W", "V")
    h, index, other_index = problem.h, problem.index[:2], problem.index[2:]
    inner = pt.cumsum(V, axis=2) - sparse_block_outer(W, h, h, *index)
    updates = [
        (W, pt.cumsum(W, axis=2)),
        (V, sparse_block_outer(inner, h, h, *other_index)),
    ]
    check_copies(problem, updates, mode())


@pytest.mark.parametrize("mode", GRAPHS)
def test_an_outer_into_what_is_returned(mode):
    """It is no new value, so it is computed beside the old one."""
    problem = Problem(2)
    [W] = weights(problem.rng, "W")
    h, index = problem.h, problem.index
    returned = W / (1 + W**2)
    updates = [(W, sparse_block_outer(returned, h, h, *index))]
    check_copies(problem, updates, mode(), returned)


@pytest.mark.parametrize("mode", GRAPHS)
def test_a_step_in_a_part_of_a_copy(mode):
    """Its blocks are those of the copy."""
    problem = Problem(4)
    W, V = weights(problem.rng, "W", "V")
    rows = pytensor.shared(problem.rng.normal(size=(BATCH, WINDOW, SIZE)), "rows")
    h, index, other_index = problem.h, problem.index[:2], problem.index[2:]
    y = pt.tanh(rows * h)
    updates = [
        (W, sparse_block_outer(W, h, y, *index)),
        (rows, rows - 0.1 * y),
        (V, pt.set_subtensor(V[1:], sparse_block_outer(V[1:], h, h, *other_index))),
    ]
    function = check_copies(problem, updates, mode(), checked=1)
    assert SparseBlockOuterInPart in [type(n.op) for n in function.maker.fgraph.apply_nodes]
    values = problem.values()
    variables, new = zip(*updates, strict=True)
    expected = pytensor.function(problem.inputs, new, mode="FAST_COMPILE")(*values)
    function(*values)
    for variable, value in zip(variables, expected, strict=True):
        np.testing.assert_allclose(variable.get_value(), value)


def check_copies(problem, updates, mode, outputs=None, checked=0):
    function = problem.check(updates, mode, outputs)
    assert len(checks(function)) == checked
    assert any(isinstance(n.op, DeepCopyOp) for n in function.maker.fgraph.apply_nodes)
    return function


@pytest.mark.parametrize("mode", MODES[1:])
def test_values_that_are_drawn_or_kept(mode):
    """A product that needs them comes after what computes them, which must spare the old ones."""
    problem = Problem(2)
    [W] = weights(problem.rng, "W")
    generator = pytensor.shared(np.random.default_rng(0), "generator")
    kept = pytensor.shared(np.ones((BATCH, WINDOW, SIZE)), "kept")
    next_generator, noise = pt.random.normal(rng=generator, size=kept.shape).owner.outputs
    dot = sparse_block_dot(W, pt.tanh(kept) * noise, problem.index[0], None, problem.index[1])
    updates = [(generator, next_generator), (kept, problem.h), *step([W], (dot**2).sum())]
    problem.check(updates, mode)


@pytest.mark.parametrize("mode", GRAPHS)
@pytest.mark.parametrize(
    ("x_size", "y_size", "y_batch"), [(SIZE, 3, BATCH), (3, SIZE, BATCH), (SIZE, SIZE, BATCH - 1)]
)
def test_sizes_that_disagree(x_size, y_size, y_batch, mode):
    rng = np.random.default_rng(0)
    W, V = weights(rng, "W", "V")
    x, y, v = pt.tensor3s("x", "y", "v")
    i, j = pt.lmatrices("i", "j")
    updates = [
        (V, sparse_block_outer(V, v, v, i, j)),
        (W, sparse_block_outer(W, x, y, i, j)),
    ]
    function = pytensor.function([x, y, v, i, j], updates=updates, mode=mode())
    before = [state_of(W), state_of(V)]
    values = (rng.normal(size=(n, WINDOW, k)) for n, k in ((BATCH, x_size), (y_batch, y_size)))
    index = rng.integers(0, BLOCKS, (BATCH, WINDOW))
    with pytest.raises(ValueError, match=r"SparseBlockOuter: .* must be equal"):
        function(*values, np.ones((BATCH, WINDOW, SIZE)), index, index)
    assert [state_of(W), state_of(V)] == before


ONE = pt.constant(1.0, dtype="float64")


def stepped(W, loss):
    return W - 0.1 * pt.grad(loss, W)


# Updates of which one needs a product of W, and its loss, if the condition is not zero.
STEPS_BY_CHOICE = {
    "a scale": lambda c, U, V, W, loss: [(U, U * 2), (V, V * ifelse(c, loss, ONE))],
    "a sum": lambda c, U, V, W, loss: [(V, V * ifelse(c, loss, W.sum())), (U, U * 2)],
    "a step": lambda c, U, V, W, loss: [(V, V * 2), (W, ifelse(c, stepped(W, loss), W))],
    "a step into a copy": lambda c, U, V, W, loss: [
        (V, V * 2),
        (W, ifelse(c, stepped(W, loss), V * 3)),
    ],
    "of new values": lambda c, U, V, W, loss: [(V, V * c), (W, ifelse(c, W * loss, V * 3))],
    "a choice in a choice": lambda c, U, V, W, loss: [
        (V, V * 2),
        (W, ifelse(c, W * ifelse(c, loss, ONE), W)),
    ],
}


@pytest.mark.parametrize("mode", MODES[1:])
@pytest.mark.parametrize("kind", STEPS_BY_CHOICE)
def test_a_lazy_choice(kind, mode):
    """What it needs is computed before anything is written, and if it is chosen alone."""
    problem = Problem(2)
    U, V, W = weights(problem.rng, "U", "V", "W")
    condition = pt.scalar("condition")
    problem.inputs.append(condition)
    y = sparse_block_dot(W, problem.h, problem.index[0], None, problem.index[1])
    updates = STEPS_BY_CHOICE[kind](condition, U, V, W, (y**2).sum())
    function = problem.compile(updates, mode)
    variables = [variable for variable, _ in updates]
    before = [state_of(variable) for variable in variables]
    for wrong in range(2):
        with pytest.raises(IndexError, match="= 9 is out of range"):
            function(*problem.values(wrong), 2.0)
        assert [state_of(variable) for variable in variables] == before
    # PyTensor 3.0 has Numba compute what is not chosen, too.
    is_lazy = mode == "CVM" or not pytensor.__version__.startswith("3.0.")
    function(*problem.values(wrong=0 if is_lazy else None), 0.0)
    function(*problem.values(), 2.0)
    assert all(state_of(x) != old for x, old in zip(variables, before, strict=True))
