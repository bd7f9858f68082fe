"""Sizes that are only not known to be equal: steps stay sparse, and are checked when they run."""

from functools import cache, partial

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from cases import ARRAY_MODES, MODES, in_python, needs_library
from pytensor.compile.mode import Mode
from pytensor.tensor.shape import Shape_i

from blocksparse_ops import SparseBlockOuter, sparse_block_dot, sparse_block_gemv
from blocksparse_ops.rewrites import bias, inplace, scan, update
from blocksparse_ops.zeros import zeros

AS_IT_STANDS = Mode("py", None)

RNG = np.random.default_rng(0)

# The windows of six examples into 3 x 4 blocks.
INDICES = [RNG.integers(0, blocks, (6, 2)) for blocks in (3, 4)]


class Layer:
    """A layer of weights of this shape, the gradient of its loss, and what a function takes."""

    def __init__(self, shape, known=None, dtype="float64", known_input=None):
        values = RNG.normal(size=shape).astype(dtype)
        self.W = pytensor.shared(values, "W", shape=known)
        h = RNG.normal(size=(6, 2, shape[2])).astype(dtype)
        self.h = pt.tensor("h", shape=(None, None, known_input), dtype=dtype)
        self.inputs = [self.h, *pt.lmatrices("i", "j")]
        self.values = [h, *INDICES]
        self.y = sparse_block_dot(self.W, self.h, self.inputs[1], None, self.inputs[2])
        self.g = pt.grad((self.y**2).sum(), self.W)


def ones(shape, dtype="float64", known=None):
    return pytensor.shared(np.ones(shape, dtype), shape=known)


COLUMN, BLOCK = (3, 4, 1, 5), (3, 4, 2, 5)


def weights_of_unknown_shape():
    layer = Layer(COLUMN, known_input=1)
    return layer, layer.W, layer.W - 0.1 * layer.g


def accumulator_of_unknown_shape():
    layer, V = Layer(COLUMN, known=COLUMN), ones(COLUMN)
    return layer, V, V + layer.g


def velocity_of_unknown_shape():
    layer, V = Layer(COLUMN, known=COLUMN), ones(COLUMN)
    return layer, V, 0.9 * V + 0.1 * layer.g


def accumulator_alone_of_known_shape():
    layer, V = Layer(COLUMN), ones(COLUMN, known=COLUMN)
    return layer, V, V + layer.g


def one_input_block():
    layer, V = Layer((1, 4, 2, 5), known=(1, 4, 2, 5)), ones((1, 4, 2, 5))
    layer.values[1] = np.zeros_like(layer.values[1])
    return layer, V, V - 0.1 * layer.g


def accumulator_of_higher_precision():
    layer, A = Layer(COLUMN, dtype="float32", known_input=1), ones(COLUMN)
    return layer, A, A + layer.g


def rows_and_columns():
    layer, V = Layer(BLOCK), ones(BLOCK)
    r, c = pytensor.shared(np.ones((2, 5))), pytensor.shared(np.ones((3, 4)))
    return layer, V, r[None, None] + c[:, :, None, None] + layer.g


def a_rest_of_lower_precision_and_a_scalar():
    layer, V, V32 = Layer(BLOCK), ones(BLOCK), ones(BLOCK, "float32")
    return layer, V, V32 + pytensor.shared(np.array(2.0)) + layer.g


def two_gradients_of_two_weights():
    layer, other, A = Layer(BLOCK), Layer(BLOCK), ones(BLOCK)
    g = pytensor.graph.clone_replace(
        other.g, dict(zip(other.inputs, layer.inputs, strict=True)), rebuild_strict=False
    )
    return layer, A, A - 0.1 * (layer.g + g)


# How many outers of the step are in place on something else than zeros, of how many.
STEPS = {
    weights_of_unknown_shape: (1, 1),
    accumulator_of_unknown_shape: (1, 1),
    velocity_of_unknown_shape: (1, 1),
    accumulator_alone_of_known_shape: (1, 1),
    one_input_block: (1, 1),
    accumulator_of_higher_precision: (0, 1),
    rows_and_columns: (1, 1),
    a_rest_of_lower_precision_and_a_scalar: (1, 1),
    two_gradients_of_two_weights: (2, 2),
}


def outers_of(function):
    """But for those that only check for others, of which nothing but the size is used."""
    fgraph = function.maker.fgraph
    return [
        node
        for node in fgraph.toposort()
        if isinstance(node.op, SparseBlockOuter)
        and not all(isinstance(client.op, Shape_i) for client, _ in fgraph.clients[node.out])
    ]


def starts_from_zeros(node):
    """Whether what an outer adds to is allocated, perhaps specified."""
    o = node.inputs[0]
    while o.owner is not None and o.owner.op.view_map:
        o = o.owner.inputs[0]
    return o.owner is not None and "Zeros" in str(o.owner.op)


# Of the others the graphs that a mode's rewrites give run in Python: their ops are the same.
COMPILED = (weights_of_unknown_shape, rows_and_columns, two_gradients_of_two_weights)


@pytest.mark.parametrize("mode", MODES[1:])
@pytest.mark.parametrize("build", STEPS, ids=lambda build: build.__name__)
def test_steps(build, mode):
    if build not in COMPILED:
        mode = in_python(mode)
    layer, parameter, new = build()
    [expected] = pytensor.function(layer.inputs, [new], mode=AS_IT_STANDS)(*layer.values)
    function = pytensor.function(layer.inputs, updates=[(parameter, new)], mode=mode)
    outers = outers_of(function)
    sparse = [node for node in outers if node.op.inplace and not starts_from_zeros(node)]
    assert (len(sparse), len(outers)) == STEPS[build]
    function(*layer.values)
    tolerance = 1e-5 if layer.W.dtype == "float32" else 1e-12
    np.testing.assert_allclose(parameter.get_value(), expected, tolerance, tolerance)


@pytest.mark.parametrize("mode", [*MODES[1:], *ARRAY_MODES])
def test_gradients_of_different_shapes_are_not_added(mode):
    one, other = Layer(BLOCK), Layer((5, 6, 2, 5))
    inputs, values = [*one.inputs, *other.inputs], [*one.values, *other.values]
    function = pytensor.function(inputs, one.g + other.g, mode=mode)
    with pytest.raises((ValueError, AssertionError, TypeError)):
        function(*values)


@cache
def accumulate(mode):
    """A function that adds a gradient to an accumulator, the accumulator, and its arguments."""
    layer, V = Layer(COLUMN, known=COLUMN), ones(COLUMN)
    function = pytensor.function(layer.inputs, updates=[(V, V + layer.g)], mode=mode)
    return function, V, layer.values


@pytest.mark.parametrize("mode", MODES[1:])
@pytest.mark.parametrize("shape", [(3, 4, 7, 5), (9, 4, 1, 5), (3, 9, 1, 5)])
def test_an_accumulator_of_another_shape(mode, shape):
    """A gradient is not stretched, even along an axis where it is known to have one element."""
    function, V, values = accumulate(mode)
    V.set_value(np.ones(shape))
    with pytest.raises((ValueError, AssertionError)):
        function(*values)
    np.testing.assert_array_equal(V.get_value(), np.ones(shape))


@pytest.mark.parametrize("mode", MODES[1:])
def test_a_bias_does_not_hide_zeros_of_another_shape(mode):
    layer, c = Layer(BLOCK), pt.dtensor3("c")
    sizes = pt.lscalars("n", "w", "q")
    product = sparse_block_gemv(pt.zeros(sizes), layer.W, *layer.inputs)
    function = pytensor.function([*layer.inputs, c, *sizes], product + c, mode=mode)
    bias = np.ones((6, 2, 5))
    right = function(*layer.values, bias, *bias.shape)
    expected = pytensor.function(layer.inputs, layer.y, mode=AS_IT_STANDS)(*layer.values)
    np.testing.assert_allclose(right, expected + 1)
    for wrong in ((5, 2, 5), (6, 3, 5), (6, 2, 4)):
        with pytest.raises((ValueError, AssertionError)):
            function(*layer.values, bias, *wrong)


def model_with_a_gate(b):
    """Each example computes the blocks of the two largest of its scores."""
    x = pt.dmatrix("x")
    scores, W = pytensor.shared(np.ones((4, 6))), pytensor.shared(np.ones((1, 6, 4, 3)))
    top = pt.argsort(-(x @ scores), axis=1)[:, :2]
    zero = pt.zeros((x.shape[0], 1), dtype="int64")
    return W, x, sparse_block_dot(W, x[:, None, :], zero, b, top), [x], [RNG.normal(size=(5, 4))]


def computed(what):
    """A product of arrays of which some are slices of others."""
    layer = Layer(BLOCK)
    h, i, j = layer.inputs
    W = layer.W
    if what == "inputs":
        y = sparse_block_dot(W, h[:, 1:], i[:, 1:], None, j)
    elif what == "outputs":
        y = sparse_block_dot(W, h, i, None, pt.concatenate([j, j], axis=1)[:, ::2])
    elif what == "batch":
        y = sparse_block_dot(W, h[::2], i[::2], None, j[::2])
    else:
        W = layer.W[1:]
        y = sparse_block_dot(W, h, i // 2, None, j)
    return W, h, y, layer.inputs, layer.values


COMPUTED = ["gate", "inputs", "outputs", "batch", "weights"]


@pytest.mark.parametrize("mode", ARRAY_MODES)
@pytest.mark.parametrize("what", COMPUTED)
def test_sizes_that_the_graph_computes(what, mode):
    """Of a window, of a gradient, and of a step that is checked, where sizes are no constants."""
    W, x, y, inputs, values = model_with_a_gate(None) if what == "gate" else computed(what)
    gradients = pt.grad((y**2).sum(), [W, x])
    V = pytensor.shared(np.ones(W.eval().shape))
    outputs = [y, *gradients, V - 0.1 * gradients[0]]
    results = [pytensor.function(inputs, outputs, mode=m)(*values) for m in (mode, AS_IT_STANDS)]
    for one, other in zip(*results, strict=True):
        np.testing.assert_allclose(np.asarray(one), other, rtol=1e-6, atol=1e-6)


def layers(count):
    """Inputs and updates of as many layers of two uses of the weights, with decay and momentum."""
    inputs, updates = [], []
    for _ in range(count):
        one, other = Layer(BLOCK), Layer(BLOCK)
        again = sparse_block_dot(one.W, *other.inputs[:2], None, other.inputs[2])
        g = pt.grad((one.y**2).sum() + pt.tanh(again + one.y).sum(), one.W)
        velocity = ones(BLOCK)
        updates += [(one.W, one.W - 0.1 * (g + 0.01 * one.W))]
        updates += [(velocity, 0.9 * velocity - other.g)]
        inputs += [*one.inputs, *other.inputs]
    return inputs, updates


def step(build):
    layer, parameter, new = build()
    return layer.inputs, [(parameter, new)]


GRAPHS = {build.__name__: partial(step, build) for build in STEPS}
GRAPHS |= {f"{count} layers": partial(layers, count) for count in (1, 2, 5)}

REWRITERS = [
    bias.local_sparse_block_gemv_bias,
    update.local_sparse_block_outer_update,
    inplace.local_inplace_sparse_block_gemv,
    inplace.local_inplace_sparse_block_outer,
    scan.local_scan_sparse_block_outer_zeros,
    scan.local_scan_sparse_block_outer_state,
]


@pytest.mark.parametrize("graph", GRAPHS)
def test_each_rewriter_makes_progress(graph, monkeypatch):
    """It fires at most once for each op of ours in the graph, and stack traces do not pile up."""
    inputs, updates = GRAPHS[graph]()
    plain = pytensor.function(inputs, updates=updates, mode=AS_IT_STANDS)
    ours = sum("SparseBlock" in str(node.op) for node in plain.maker.fgraph.apply_nodes)
    fired = dict.fromkeys(REWRITERS, 0)

    def counting(rewriter, rewrite):
        def counted(fgraph, node):
            result = rewrite(fgraph, node)
            fired[rewriter] += bool(result)
            # At once, where it could go on for ever.
            assert fired[rewriter] <= ours
            return result

        return counted

    for rewriter in REWRITERS:
        monkeypatch.setattr(rewriter, "fn", counting(rewriter, rewriter.fn))
    function = pytensor.function(inputs, updates=updates, mode=Mode("py", "fast_run"))
    assert bool(fired[update.local_sparse_block_outer_update]) == (graph not in NOT_MERGED)
    assert max(len(node.outputs[0].tag.trace) for node in outers_of(function)) <= 2 * ours


NOT_MERGED = [build.__name__ for build, (sparse, _) in STEPS.items() if not sparse]


@needs_library("JAX")
def test_sizes_that_are_computed_are_read_off_nothing():
    sizes = pt.lvector()
    blocks = zeros([(2 * sizes)[0], sizes.shape[0], 3], "float64")
    function = pytensor.function([sizes], blocks, mode=in_python("JAX"))
    assert function([4, 5]).shape == (8, 2, 3)
