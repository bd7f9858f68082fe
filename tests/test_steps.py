"""Steps that people write: of parts and views of an array, guarded, and in two precisions."""

from functools import partial

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from cases import MODES, in_python, needs_compiler
from pytensor.compile.mode import Mode
from watch import OUTERS, Watch

from blocksparse_ops import sparse_block_dot, sparse_block_outer
from blocksparse_ops.part import SparseBlockOuterInPart
from blocksparse_ops.zeros import zeros

BLOCKS, ROWS, COLUMNS = 5, 4, 3
W_SHAPE = (BLOCKS, BLOCKS, ROWS, COLUMNS)
BATCH, WINDOW = 6, 2

ZERO = np.float32(0)


class Layer:
    """One shared array, layers whose weights are views of it, and what a step may depend on."""

    def __init__(self, *shape):
        self.rng = np.random.default_rng(0)
        self.array = pytensor.shared(self.rng.normal(size=shape).astype("float32"), "array")
        self.h = pt.tensor3("h", dtype="float32")
        self.i, self.j = pt.lmatrices("i", "j")
        self.lr, self.lr64 = pt.scalar("lr", dtype="float32"), pt.scalar("lr64", dtype="float64")
        self.k = pt.lscalar("k")
        self.inputs = [self.h, self.i, self.j, self.lr, self.lr64, self.k]

    def loss(self, W):
        return (sparse_block_dot(W, self.h, self.i, None, self.j) ** 2).mean()

    def other_loss(self, W):
        return (sparse_block_dot(W, self.h, self.j, None, self.i) ** 2).sum()

    def gradient(self, *weights):
        return pt.grad(sum(self.loss(W) for W in weights), self.array)

    def values(self, k=1):
        h = self.rng.normal(size=(BATCH, WINDOW, ROWS)).astype("float32")
        i, j = self.rng.integers(-2, 1, (2, BATCH, WINDOW))
        return [h, i, j, np.float32(0.1), 0.1, k]

    def compile(self, new, mode, as_output=False):
        return pytensor.function(
            self.inputs,
            new if as_output else None,
            updates=None if as_output else [(self.array, new)],
            mode=mode,
            on_unused_input="ignore",
        )

    def expected(self, new, values):
        """The new value, without our rewrites."""
        mode = Mode("py", "fast_run").excluding("blocksparse")
        return self.compile(new, mode, as_output=True)(*values)


def plain(s):
    return s.gradient(s.array)


def step_of(s, *weights):
    return s.array - s.lr * s.gradient(*weights)


def written(s, write):
    """A step of all blocks but the first, by the gradient in those."""
    W = s.array[1:]
    return write(W, s.lr * pt.grad(s.loss(W), W))


def clipped(s, g):
    """A step whose gradient has a norm of 0.01 at the most."""
    return s.array - s.lr * g * pt.minimum(np.float32(1), np.float32(0.01) / pt.sqrt((g**2).sum()))


def clipped_by_choice(s, g):
    """The same, as one writes it: the gradient as it is, or scaled."""
    norm = pt.sqrt((g**2).sum())
    return s.array - s.lr * pt.switch(norm > np.float32(0.01), g * np.float32(0.01) / norm, g)


def scaled_by_choice(s, g, times):
    """A gradient that is chosen so often, as it is or scaled."""
    for n in range(times):
        g = pt.switch(s.k > n, s.lr * g, g)
    return g


CLIPS = {"clipped by the norm": clipped, "clipped by a choice": clipped_by_choice}

# The shape of an array, the gradient that is clipped, and how many outers in place that takes.
CLIPPED = {
    "": (W_SHAPE, plain, 1),
    ", two uses": (
        W_SHAPE,
        lambda s: pt.grad(s.loss(s.array) + s.other_loss(s.array), s.array),
        2,
    ),
    ", of a part": ((6, 5, 4, 3), lambda s: s.gradient(s.array[1:]), 1),
    ", used both ways": (
        (5, 5, 4, 4),
        lambda s: s.gradient(s.array, s.array.transpose(1, 0, 3, 2)),
        2,
    ),
    ", a gradient twice": (W_SHAPE, lambda s: plain(s) + s.lr * plain(s), 1),
}


def clip_of(clip, gradient, s):
    return clip(s, gradient(s))


# The shape of the array, its new value, and how many outers in place that takes.
STEPS = {
    "B[1:]": ((6, 5, 4, 3), lambda s: step_of(s, s.array[1:]), 1),
    "B[::-2, 1:]": ((10, 6, 4, 3), lambda s: step_of(s, s.array[::-2, 1:]), 1),
    "B[..., 1:4]": ((5, 5, 4, 6), lambda s: step_of(s, s.array[..., 1:4]), 1),
    "B[1:], set_subtensor": (
        (6, 5, 4, 3),
        lambda s: written(s, lambda W, d: pt.set_subtensor(W, W - d)),
        1,
    ),
    "B[1:], inc_subtensor": (
        (6, 5, 4, 3),
        lambda s: written(s, lambda W, d: pt.inc_subtensor(W, -d)),
        1,
    ),
    "W_all[1]": ((3, *W_SHAPE), lambda s: step_of(s, s.array[1]), 1),
    "W_all[k]": ((3, *W_SHAPE), lambda s: step_of(s, s.array[s.k]), 1),
    "W_all[0] and W_all[2]": ((3, *W_SHAPE), lambda s: step_of(s, s.array[0], s.array[2]), 2),
    "W_all[0] twice": (
        (3, *W_SHAPE),
        lambda s: s.array - s.lr * pt.grad(s.loss(s.array[0]) + s.other_loss(s.array[0]), s.array),
        2,
    ),
    "a part that is transposed": (
        (3, 5, 5, 3, 4),
        lambda s: step_of(s, s.array[1].transpose(1, 0, 3, 2)),
        1,
    ),
    "a part that is used both ways": (
        (3, 5, 5, 4, 4),
        lambda s: step_of(s, s.array[1], s.array[1].transpose(1, 0, 3, 2)),
        2,
    ),
    "a part that is used both ways, transposed first": (
        (3, 5, 5, 4, 4),
        lambda s: step_of(s, s.array[1].transpose(1, 0, 3, 2), s.array[1]),
        2,
    ),
    "a flat vector": ((300,), lambda s: step_of(s, s.array.reshape(W_SHAPE)), 1),
    "a part of a flat vector": ((307,), lambda s: step_of(s, s.array[3:-4].reshape(W_SHAPE)), 1),
    "two parts of a flat vector": (
        (600,),
        lambda s: step_of(s, s.array[:300].reshape(W_SHAPE), s.array[300:].reshape(W_SHAPE)),
        2,
    ),
    "a flat vector in two shapes": (
        (144,),
        lambda s: step_of(s, s.array.reshape((2, 6, 4, 3)), s.array.reshape((3, 4, 4, 3))),
        2,
    ),
    "a flat vector in shapes that are not known": (
        (144,),
        lambda s: step_of(s, *(s.array.reshape((s.k + n, -1, 4, 3)) for n in (1, 2))),
        2,
    ),
    "switch of the rate, by the loss": (
        W_SHAPE,
        lambda s: s.array - pt.switch(pt.isfinite(s.loss(s.array)), s.lr, ZERO) * plain(s),
        1,
    ),
    "switch of the rate, by a count": (
        W_SHAPE,
        lambda s: s.array - pt.switch(s.k < 1, ZERO, s.lr) * plain(s),
        1,
    ),
    "switch of the rate, by numbers as one writes them": (
        W_SHAPE,
        lambda s: s.array - pt.switch(s.k < 1, 0, s.lr) * plain(s),
        1,
    ),
    "switch of the weights": (
        W_SHAPE,
        lambda s: pt.switch(pt.isfinite(s.loss(s.array)), s.array - s.lr * plain(s), s.array),
        1,
    ),
    "switch of two steps": (
        W_SHAPE,
        lambda s: pt.switch(
            s.k < 1,
            s.array - s.lr * plain(s),
            s.array - pt.grad(s.other_loss(s.array), s.array),
        ),
        2,
    ),
    "a wider rate": (W_SHAPE, lambda s: (s.array - s.lr64 * plain(s)).astype("float32"), 1),
    "a wider step": (W_SHAPE, lambda s: s.array - (s.lr64 * plain(s)).astype("float32"), 1),
    **{
        f"{name}{what}": (shape, partial(clip_of, clip, gradient), outers)
        for name, clip in CLIPS.items()
        for what, (shape, gradient, outers) in CLIPPED.items()
    },
    "a choice of choices, 256 ways to the gradient": (
        W_SHAPE,
        lambda s: s.array - scaled_by_choice(s, plain(s), 8),
        1,
    ),
    "a sum of parts, one of them scaled": (
        (2, *W_SHAPE),
        lambda s: s.array - s.lr * pt.grad(s.loss(s.lr * s.array[0] + s.array[1]), s.array),
        2,
    ),
    "a sum of parts, one of them transposed": (
        (2, 5, 5, 4, 4),
        lambda s: (
            s.array - s.lr * pt.grad(s.loss(s.array[0] + s.array[1].transpose(1, 0, 3, 2)), s.array)
        ),
        2,
    ),
    "a gradient twice": (
        W_SHAPE,
        lambda s: s.array - s.lr * plain(s) - (s.lr64 * plain(s)).astype("float32"),
        1,
    ),
    "a gradient and its transpose": (
        (5, 5, 4, 4),
        lambda s: s.array - s.lr * (plain(s) + plain(s).transpose(1, 0, 3, 2)),
        2,
    ),
    "a gradient twice, and another": (
        W_SHAPE,
        lambda s: (
            s.array
            - s.lr * (plain(s) + pt.grad(s.other_loss(s.array), s.array))
            - plain(s) / (s.k + 1).astype("float32")
        ),
        2,
    ),
    "switch of two rates": (
        W_SHAPE,
        lambda s: pt.switch(
            s.k < 1, s.array - s.lr * plain(s), s.array - np.float32(2) * s.lr * plain(s)
        ),
        1,
    ),
    "switch of two rates and of none": (
        W_SHAPE,
        lambda s: (
            s.array
            - pt.switch(s.k < 1, s.lr * plain(s), pt.switch(s.k > 5, plain(s), ZERO * plain(s)))
        ),
        1,
    ),
    "a wider rate, guarded, of a part": (
        (6, 5, 4, 3),
        lambda s: pt.switch(
            s.k > 0, (s.array - s.lr64 * s.gradient(s.array[1:])).astype("float32"), s.array
        ),
        1,
    ),
}


def check_step(name, mode, calls=1):
    """The values, and that they are written in place."""
    shape, new_of, _ = STEPS[name]
    layer = Layer(*shape)
    new = new_of(layer)
    function = layer.compile(new, mode)
    pointer = layer.array.get_value(borrow=True).ctypes.data
    for _ in range(calls):
        values = layer.values()
        expected = layer.expected(new, values)
        function(*values)
        assert layer.array.get_value(borrow=True).ctypes.data == pointer
        np.testing.assert_allclose(layer.array.get_value(), expected, 1e-5, 1e-6)


@pytest.mark.parametrize("mode", ["CVM", "NUMBA"])
@pytest.mark.parametrize("name", STEPS)
def test_graph_and_values(name, mode):
    """Outers in place, and nothing else of the array's size."""
    shape, _, outers = STEPS[name]
    watch = Watch(mode, np.prod(shape))
    check_step(name, watch.mode)
    watch.assert_outers(outers)


COMPILED = [
    "B[::-2, 1:]",
    "a part of a flat vector",
    "switch of the weights",
    "clipped by the norm, two uses",
]


@pytest.mark.parametrize("mode", MODES[1:])
@pytest.mark.parametrize("name", COMPILED)
def test_compiled(name, mode):
    check_step(name, mode, calls=2)


DENSE = {
    "a norm of each column": (
        W_SHAPE,
        lambda s: s.array - s.lr * plain(s) / pt.sqrt((plain(s) ** 2).sum(axis=2, keepdims=True)),
    ),
    "a norm in two shapes": (
        (144,),
        lambda s: clipped(
            s, s.gradient(s.array.reshape((2, 6, 4, 3)), s.array.reshape((3, 4, 4, 3)))
        ),
    ),
    "a norm in shapes that are not known": (
        (144,),
        lambda s: clipped(s, s.gradient(*(s.array.reshape((s.k + n, -1, 4, 3)) for n in (1, 2)))),
    ),
    "a norm of what is no gradient": (
        W_SHAPE,
        lambda s: s.array - s.lr * plain(s) / pt.sqrt(((plain(s) + s.array) ** 2).sum()),
    ),
    "the sum of the gradient": (W_SHAPE, lambda s: s.array - plain(s) / (2 * plain(s)).sum()),
    "a choice for each block": (
        W_SHAPE,
        lambda s: pt.switch(s.array > 0, s.array - s.lr * plain(s), s.array),
    ),
    "a choice of what decays": (
        W_SHAPE,
        lambda s: pt.switch(s.k > 0, s.array - s.lr * plain(s), s.lr * s.array),
    ),
    "a part by an array of indices": ((6, 5, 4, 3), lambda s: step_of(s, s.array[[1, 2, 5, 3, 4]])),
    "another part than was read": (
        (6, 5, 4, 3),
        lambda s: written(s, lambda W, d: pt.set_subtensor(W, s.array[:-1] - d)),
    ),
    "a part that decays": (
        (6, 5, 4, 3),
        lambda s: s.array - s.lr * pt.grad(s.loss(s.array[1:]) + (s.array[1:] ** 2).sum(), s.array),
    ),
    "a part that decays by itself": (
        (6, 5, 4, 3),
        lambda s: (
            pt.inc_subtensor(s.array[1:], -s.lr * s.array[1:]) - s.lr * s.gradient(s.array[1:])
        ),
    ),
    "a part that is reshaped as it is written": (
        (6, 5, 4, 3),
        lambda s: written(s, lambda W, d: pt.set_subtensor(W, (W - d).reshape((s.k + 4, 5, 4, 3)))),
    ),
    "a part that is transposed as it is written": (
        (6, 5, 4, 4),
        lambda s: written(s, lambda W, d: pt.set_subtensor(W, (W - d).transpose(1, 0, 3, 2))),
    ),
    "a part of a part": ((7, 5, 4, 3), lambda s: step_of(s, s.array[1:][1:])),
    "a part that is set": (
        (6, 5, 4, 3),
        lambda s: pt.set_subtensor(s.array[1:], 0) - s.lr * s.gradient(s.array[1:]),
    ),
    "a part in two shapes": (
        (3, 2, 6, 4, 3),
        lambda s: step_of(s, s.array[1], s.array[1].reshape((6, 2, 4, 3))),
    ),
    "weights of a higher precision": (
        W_SHAPE,
        lambda s: (s.array.astype("float64") * s.lr64 - plain(s) * s.array).astype("float32"),
    ),
}


@pytest.mark.parametrize("name", DENSE)
def test_what_stays_dense(name):
    shape, new_of = DENSE[name]
    layer = Layer(*shape)
    new, values = new_of(layer), layer.values()
    expected = layer.expected(new, values)
    watch = Watch("NUMBA", np.prod(shape))
    layer.compile(new, watch.mode)(*values)
    assert any(type(node.op) not in OUTERS for node in watch.nodes)
    np.testing.assert_allclose(layer.array.get_value(), expected, 1e-5, 1e-6)


def outer_on(s, *shape):
    """An outer on zeros of this shape, which `s.array` may not have."""
    i, j = (index % size for index, size in zip((s.i, s.j), shape[:2], strict=True))
    return sparse_block_outer(zeros(shape, "float32"), s.h, s.h[:, :, :COLUMNS], i, j)


# What is repeated to the size of others: the shape of the array, and what is computed.
REPEATED = {
    "in a reshaped sum": (
        (144,),
        lambda s: s.array - (outer_on(s, 6, 2, 4, 3) + outer_on(s, 1, 1, 4, 3)).reshape((-1,)),
    ),
    "a rest, in a reshaped sum": (
        (144,),
        lambda s: s.array - (outer_on(s, 6, 2, 4, 3) + s.array[:12].reshape((4, 3))).reshape((-1,)),
    ),
    "what is written into": (
        (3, 2, 2, 4, 3),
        lambda s: (
            s.array
            - pt.inc_subtensor(zeros((1, 2, 2, 4, 3), "float32")[0], outer_on(s, 2, 2, 4, 3))
        ),
    ),
    "in a part": (
        (7, 2, 4, 3),
        lambda s: pt.inc_subtensor(s.array[1:], outer_on(s, 6, 2, 4, 3) + outer_on(s, 1, 1, 4, 3)),
    ),
    "zeros that are chosen": (
        (2, 2, 4, 3),
        lambda s: s.array - pt.switch(s.k > 0, outer_on(s, 2, 2, 4, 3), np.zeros(3, "float32")),
    ),
    "zeros that are chosen, in a sum": (
        (2, 2, 4, 3),
        lambda s: (
            pt.switch(s.k > 1, np.zeros(3, "float32"), outer_on(s, 2, 2, 4, 3))
            + outer_on(s, 2, 2, 4, 3)
        ),
    ),
    "by an exponent": (
        (),
        lambda s: (outer_on(s, 1, 1, 4, 3) ** np.full((5, 1, 1, 1), 2, "float32")).sum(),
    ),
}


@pytest.mark.parametrize("name", REPEATED)
def test_what_is_repeated(name):
    shape, value_of = REPEATED[name]
    layer = Layer(*shape)
    value, values = value_of(layer), layer.values()
    actual = layer.compile(value, Mode("py", "fast_run"), as_output=True)(*values)
    np.testing.assert_allclose(actual, layer.expected(value, values), 1e-5, 1e-6)


def test_a_norm_of_shapes_that_disagree():
    layer = Layer(2, 2, 4, 3)
    total = outer_on(layer, 2, 2, 4, 3) + outer_on(layer, layer.k, 2, 4, 3)
    norm = layer.compile((total**2).sum(), Mode("py", "fast_run"), as_output=True)
    with pytest.raises((ValueError, AssertionError), match="shape"):
        norm(*layer.values(k=3))


@pytest.mark.parametrize(("dtype", "wide"), [("float16", "float32"), ("float32", "float64")])
def test_a_norm_of_a_higher_precision(dtype, wide):
    """The sum of squares is finite in that of the sum alone."""
    x = np.full((2, 1, 8), np.sqrt(float(np.finfo(dtype).max)) / 4, dtype)
    W, h = pytensor.shared(np.ones((3, 2, 8, 8), dtype)), pt.tensor3(dtype=dtype)
    y = sparse_block_dot(W, h, [[0], [1]], None, [[0], [1]])
    norm = (pt.grad(y.sum(), W) ** 2).sum(dtype=wide)
    actual, expected = (
        pytensor.function([h], norm, mode=mode)(x) for mode in (in_python("NUMBA"), "FAST_COMPILE")
    )
    assert np.isfinite(expected)
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


@pytest.mark.parametrize("mode", [pytest.param("CVM", marks=needs_compiler), "NUMBA"])
def test_clipped_by_the_norm_of_several_gradients(mode):
    """Weights, a bias and weights that are used both ways: nothing but outers is as large."""
    layer = Layer(*W_SHAPE)
    b = pytensor.shared(layer.rng.normal(size=(BLOCKS, COLUMNS)).astype("float32"), "b")
    V = pytensor.shared(layer.rng.normal(size=(BLOCKS, BLOCKS, 3, 3)).astype("float32"), "V")
    h = sparse_block_dot(layer.array, layer.h, layer.i, b, layer.j)
    for weights in (V, V.transpose(1, 0, 3, 2)):
        h = sparse_block_dot(weights, h, layer.j, None, layer.i)
    parameters = [layer.array, b, V]
    gradients = pt.grad((h**2).mean(), parameters)
    norm = pt.sqrt(sum((g**2).sum() for g in gradients))
    rate = layer.lr * pt.minimum(np.float32(1), np.float32(0.01) / norm)
    updates = [(p, p - rate * g) for p, g in zip(parameters, gradients, strict=True)]
    values = layer.values()
    *expected, expected_norm = layer.expected([*(new for _, new in updates), norm], values)
    watch = Watch(mode, V.get_value().size)
    step = pytensor.function(
        layer.inputs, norm, updates=updates, mode=watch.mode, on_unused_input="ignore"
    )
    np.testing.assert_allclose(step(*values), expected_norm, 1e-5)
    watch.assert_outers(3)
    for parameter, value in zip(parameters, expected, strict=True):
        np.testing.assert_allclose(parameter.get_value(), value, 1e-5, 1e-7)


@pytest.mark.parametrize("mode", MODES)
def test_a_guard_keeps_a_bad_loss_out(mode):
    """No NaN of the gradient reaches the weights, in whichever way the step is guarded."""
    layer = Layer(*W_SHAPE)
    loss, g = layer.loss(layer.array), plain(layer)
    is_good = pt.isfinite(loss)
    values = layer.values()
    values[0][0, 0, 0] = np.nan
    before = layer.array.get_value()
    for new in (
        pt.switch(is_good, layer.array - layer.lr * g, layer.array),
        layer.array - pt.switch(is_good, layer.lr / loss, ZERO) * g,
    ):
        layer.compile(new, mode)(*values)
        np.testing.assert_array_equal(layer.array.get_value(), before)


@pytest.mark.parametrize("mode", MODES[1:])
def test_a_part_that_is_not_contiguous(mode):
    """To be reshaped it is copied, and written back."""
    layer = Layer(600)
    layer.array.set_value(np.zeros(1200, "float32")[::2], borrow=True)
    new = step_of(layer, layer.array[300:].reshape(W_SHAPE))
    function, values = layer.compile(new, mode), layer.values()
    layer.array.set_value(layer.rng.normal(size=1200).astype("float32")[::2], borrow=True)
    expected = layer.expected(new, values)
    function(*values)
    np.testing.assert_allclose(layer.array.get_value(), expected, 1e-5, 1e-6)


@pytest.mark.parametrize("mode", MODES[1:])
def test_a_part_of_a_read_only_array(mode):
    layer = Layer(6, 5, 4, 3)
    array = layer.array.get_value()
    array.flags.writeable = False
    layer.array.set_value(array, borrow=True)
    function = layer.compile(step_of(layer, layer.array[1:]), mode)
    with pytest.raises(ValueError, match="read-only or repeats elements"):
        function(*layer.values())


@pytest.mark.parametrize("mode", [*MODES[1:], in_python("NUMBA")], ids=["C", "Numba", "Python"])
def test_a_part_of_an_array_without_elements(mode):
    """NumPy gives it strides of 0, as what repeats elements has."""
    layer = Layer(6, 5, 4, 0)
    function = layer.compile(step_of(layer, layer.array[1:]), mode)
    nodes = function.maker.fgraph.apply_nodes
    assert SparseBlockOuterInPart in [type(node.op) for node in nodes]
    function(*layer.values())


@pytest.mark.parametrize("mode", [pytest.param("CVM", marks=needs_compiler), "NUMBA"])
def test_an_index_out_of_range_of_a_part(mode):
    """The blocks are those of the part, and nothing is changed."""
    layer = Layer(6, 5, 4, 3)
    W = layer.array[1:]
    loss = sparse_block_dot(W, layer.h, layer.i, None, layer.j).sum()
    function = layer.compile(layer.array - layer.lr * pt.grad(loss, layer.array), in_python(mode))
    before = layer.array.get_value()
    values = layer.values()
    values[1][3, 1] = 5
    with pytest.raises(IndexError, match=r"\[3, 1\] = 5 is out of range: .* = 5, .* \[-5, 5\)"):
        function(*values)
    np.testing.assert_array_equal(layer.array.get_value(), before)
