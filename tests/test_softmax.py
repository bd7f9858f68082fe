"""The two-level softmax of Theano, and its logarithms."""

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from cases import MODES, in_python, needs_compiler, needs_library
from pytensor.compile.mode import Mode
from pytensor.gradient import verify_grad
from scipy.special import log_softmax

from blocksparse_ops import SparseBlockOuter, h_softmax, log_h_softmax

BATCH, FEATURES, CLASSES, SIZE, OUTPUTS = 6, 3, 4, 5, 18


def parameters(dtype="float64", scale=1.0):
    rng = np.random.default_rng(0)
    shapes = (FEATURES, CLASSES), (CLASSES,), (CLASSES, FEATURES, SIZE), (CLASSES, SIZE)
    return [scale * rng.normal(size=shape).astype(dtype) for shape in shapes]


def problem(dtype="float64", scale=1.0):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(BATCH, FEATURES)).astype(dtype)
    return x, rng.integers(0, OUTPUTS, BATCH), parameters(dtype, scale)


def expected(x, W1, b1, W2, b2):
    """The logarithms of all outputs' probabilities."""
    of_classes = log_softmax(x @ W1 + b1, axis=-1)
    of_outputs = log_softmax(np.einsum("nf,cfk->nck", x, W2) + b2, axis=-1)
    return (of_classes[:, :, None] + of_outputs).reshape(BATCH, -1)[:, :OUTPUTS]


SIZES = BATCH, OUTPUTS, CLASSES, SIZE


@pytest.mark.parametrize(
    ("mode", "dtype"),
    [
        ("FAST_COMPILE", "float32"),
        ("FAST_COMPILE", "float64"),
        pytest.param("CVM", "float32", marks=needs_compiler),
        ("NUMBA", "float64"),
        pytest.param("JAX", "float64", marks=needs_library("JAX")),
        pytest.param("PYTORCH", "float32", marks=needs_library("PYTORCH")),
        pytest.param("MLX", "float32", marks=needs_library("MLX")),
    ],
)
def test_values(mode, dtype):
    x, target, arrays = problem(dtype)
    x_, target_ = pt.matrix(dtype=dtype), pt.matrix(dtype="int32")
    symbols = [pt.tensor(dtype=dtype, shape=(None,) * array.ndim) for array in arrays]
    outputs = [
        function(x_, *SIZES, *symbols, *wanted)
        for function in (h_softmax, log_h_softmax)
        for wanted in ((), (target_,))
    ]
    function = pytensor.function([x_, target_, *symbols], outputs, mode=mode)
    results = function(x, target[:, None].astype("int32"), *arrays)
    p, p_target, log_p, log_p_target = map(np.asarray, results)
    truth = expected(x, *arrays)
    tolerance = 1e-5 if dtype == "float32" else 1e-12
    np.testing.assert_allclose(log_p, truth, tolerance, tolerance)
    np.testing.assert_allclose(log_p_target, truth[np.arange(BATCH), target], tolerance, tolerance)
    np.testing.assert_allclose(p, np.exp(truth), tolerance, tolerance)
    np.testing.assert_allclose(p_target, np.exp(log_p_target), tolerance, tolerance)
    assert p.dtype == p_target.dtype == dtype


def test_all_outputs_sum_to_one():
    x, _, arrays = problem()
    p = h_softmax(x, BATCH, CLASSES * SIZE, CLASSES, SIZE, *arrays).eval(mode="FAST_COMPILE")
    np.testing.assert_allclose(p.sum(axis=1), 1)


def test_logarithms_where_probabilities_underflow():
    x, target, arrays = problem(scale=1e3)
    log_p = log_h_softmax(x, *SIZES, *arrays, target).eval(mode="FAST_COMPILE")
    assert log_p.min() < -800
    np.testing.assert_allclose(log_p, expected(x, *arrays)[np.arange(BATCH), target])


@pytest.mark.parametrize("function", [h_softmax, log_h_softmax])
@pytest.mark.parametrize("with_target", [True, False])
def test_gradient(function, with_target):
    x, target, arrays = problem()
    verify_grad(
        lambda x, *arrays: function(x, *SIZES, *arrays, target if with_target else None),
        [x, *arrays],
        rng=np.random.default_rng(0),
        mode=in_python("CVM"),
        no_debug_ref=False,
    )


def test_a_step_touches_the_classes_of_the_targets():
    x, _, arrays = problem()
    shared = [pytensor.shared(array) for array in arrays]
    loss = -log_h_softmax(x, *SIZES, *shared, np.zeros(BATCH, int)).mean()
    updates = [(p, p - g) for p, g in zip(shared, pt.grad(loss, shared), strict=True)]
    step = pytensor.function([], updates=updates, mode=Mode("py", "fast_run"))
    outers = [n for n in step.maker.fgraph.apply_nodes if isinstance(n.op, SparseBlockOuter)]
    assert sum(node.op.inplace for node in outers) == 2
    step()
    for parameter, before in zip(shared[2:], arrays[2:], strict=True):
        np.testing.assert_array_equal(parameter.get_value()[1:], before[1:])
        assert (parameter.get_value()[0] != before[0]).all()


@pytest.mark.parametrize("mode", MODES)
def test_a_target_that_is_no_output(mode):
    x, target, arrays = problem()
    target_ = pt.lvector()
    function = pytensor.function([target_], h_softmax(x, *SIZES, *arrays, target_), mode=mode)
    target[2] = 1 << 40
    with pytest.raises(IndexError, match="out of range"):
        function(target)


def test_a_target_of_any_integers():
    x, target, arrays = problem()
    expected = h_softmax(x, *SIZES, *arrays, target).eval()
    for dtype in ("uint8", "uint64", "int16"):
        of_dtype = h_softmax(x, *SIZES, *arrays, target.astype(dtype)).eval()
        np.testing.assert_array_equal(of_dtype, expected)


@pytest.mark.parametrize("integer", [int, np.int64])
def test_sizes_that_disagree(integer):
    """Above all of what has one column, which would be broadcast."""
    x, target, (W1, b1, W2, b2) = problem()
    sizes = [integer(size) for size in SIZES]
    for wrong, told in [
        ((W1[:, :1], b1, W2, b2), r"W1 has the shape .*; expected \(\?, 4\)"),
        ((W1, b1[:1], W2, b2), r"b1 has the shape \(1,\); expected \(4\)"),
        ((W1, b1, W2[:1], b2), r"W2 has the shape .*; expected \(4, \?, 5\)"),
        ((W1, b1, W2, b2[:, :1]), r"b2 has the shape \(4, 1\); expected \(4, 5\)"),
    ]:
        with pytest.raises(ValueError, match=f"h_softmax: {told}"):
            h_softmax(x, *sizes, *wrong, target)
    with pytest.raises(ValueError, match="h_softmax: x has the shape"):
        h_softmax(x[:-1], *sizes, W1, b1, W2, b2, target)
    unknown = pt.dmatrix("W1")
    of_one_class = h_softmax(
        x, BATCH, SIZE, 1, SIZE, unknown, b1[:1], W2[:1], b2[:1], target % SIZE
    )
    with pytest.raises(AssertionError, match=r"expected \(None, 1\)"):
        of_one_class.eval({unknown: W1}, mode=in_python("NUMBA"))


@pytest.mark.parametrize(("classes", "size"), [(CLASSES + 1, SIZE), (2 * SIZE, CLASSES // 2)])
def test_other_classes_than_the_weights_have(classes, size):
    """The weights say nothing when the graph is built; there may be as many places in all."""
    x, _, _ = problem()
    weights = [pt.dmatrix("W1"), pt.dvector("b1"), pt.dtensor3("W2"), pt.dmatrix("b2")]
    shapes = (x.shape[1], classes), (classes,), (classes, x.shape[1], size), (classes, size)
    function = pytensor.function(weights, h_softmax(x, *SIZES, *weights), mode=in_python("NUMBA"))
    with pytest.raises(AssertionError, match="SpecifyShape"):
        function(*map(np.ones, shapes))


def test_arguments_that_do_not_fit():
    x, target, arrays = problem()
    with pytest.raises(ValueError, match=r"h_softmax: n_outputs = 21 is more than .* = 4 \* 5"):
        h_softmax(x, BATCH, 21, CLASSES, SIZE, *arrays)
    with pytest.raises(TypeError, match="log_h_softmax: target has dtype float64"):
        log_h_softmax(x, *SIZES, *arrays, target * 1.0)
    with pytest.raises(TypeError, match="h_softmax: W2"):
        h_softmax(x, *SIZES, *arrays[:2], object(), arrays[3])


def test_the_example_of_theano():
    """Its docstring's, of which only the imports are changed."""
    theano, tensor = pytensor, pt

    # Parameters
    batch_size = 32
    n_outputs = 100
    dim_x = 10  # dimension of the input
    n_classes = int(np.ceil(np.sqrt(n_outputs)))
    n_outputs_per_class = n_classes
    output_size = n_outputs_per_class * n_outputs_per_class

    # First level of h_softmax
    floatX = theano.config.floatX
    W1 = theano.shared(np.random.normal(0, 0.001, (dim_x, n_classes)).astype(floatX))  # noqa: NPY002
    b1 = theano.shared(np.zeros((n_classes,), floatX))

    # Second level of h_softmax
    W2 = np.random.normal(0, 0.001, size=(n_classes, dim_x, n_outputs_per_class)).astype(floatX)  # noqa: NPY002
    W2 = theano.shared(W2)
    b2 = theano.shared(np.zeros((n_classes, n_outputs_per_class), floatX))

    x = tensor.imatrix("x")
    target = tensor.imatrix("target")

    # This only computes the output corresponding to the target.
    y_hat_tg = h_softmax(
        x, batch_size, output_size, n_classes, n_outputs_per_class, W1, b1, W2, b2, target
    )
    negll = -tensor.mean(tensor.log(y_hat_tg))

    # This computes all the outputs.
    output = h_softmax(x, batch_size, output_size, n_classes, n_outputs_per_class, W1, b1, W2, b2)

    results = [negll, output, *pt.grad(negll, [W1, W2])]
    function = pytensor.function([x, target], results, mode="FAST_COMPILE")
    rng = np.random.default_rng(0)
    values = rng.integers(0, 3, (32, 10)).astype("int32")
    targets = rng.integers(0, 100, (32, 1)).astype("int32")
    loss, p, *_ = function(values, targets)
    np.testing.assert_allclose(p.sum(axis=1), 1)
    np.testing.assert_allclose(loss, -np.log(p[np.arange(32), targets[:, 0]]).mean())
    assert p.shape == (32, 100)
