"""First, second and mixed derivatives, in every mode, with repeated and negative indices."""

import warnings
from functools import partial

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from cases import ALL_MODES, MODES, Draw, Sizes, in_python, symbols
from pytensor.gradient import DisconnectedInputError, Rop, pushforward, verify_grad

from blocksparse_ops import (
    SparseBlockGemv,
    SparseBlockOuter,
    sparse_block_dot,
    sparse_block_gemv,
    sparse_block_gemv_inplace,
    sparse_block_outer,
    sparse_block_outer_inplace,
)

SIZES = Sizes(iBlocks=2, oBlocks=3, iSize=2, oSize=3, iWin=3, oWin=2, batch=2)

PROBLEMS = {
    "gemv": (sparse_block_gemv, Draw.gemv, ["o", "W", "h"]),
    "dot": (sparse_block_dot, Draw.dot, ["W", "h", "b"]),
    "outer": (sparse_block_outer, Draw.outer, ["o", "x", "y", "alpha"]),
}


# The same with windows that are padded: of an output place all, of an input place none.
PADDED = {
    "padded gemv": (SparseBlockGemv(padding_idx=1), Draw.gemv, ["o", "W", "h"]),
    "padded dot": (partial(sparse_block_dot, padding_idx=1), Draw.dot, ["W", "h", "b"]),
    "padded outer": (SparseBlockOuter(padding_idx=1), Draw.outer, ["o", "x", "y", "alpha"]),
}


def problem_of(name):
    """The op as a function of its differentiable arguments, and their values."""
    build, draw, wrt = (PROBLEMS | PADDED)[name]
    arrays = draw(Draw(SIZES, 1, "float64"))

    def function(*values):
        return build(**{**arrays, **dict(zip(wrt, values, strict=True))})

    return function, [arrays[argument] for argument in wrt]


def verify(function, point, mode):
    """PyTensor's check, whose own cost would else be compiled by Numba in place of Python."""
    verify_grad(function, point, rng=np.random.default_rng(0), mode=mode, no_debug_ref=False)


@pytest.mark.parametrize("mode", ALL_MODES)
@pytest.mark.parametrize("name", [*PROBLEMS, "padded dot"])
def test_first_derivatives(mode, name):
    function, point = problem_of(name)
    verify(function, point, mode)


@pytest.mark.parametrize("name", [*PROBLEMS, *PADDED])
def test_second_derivatives(name):
    """Of a cost that is not quadratic, so that all mixed ones are there.

    Their graphs hold the same ops in every mode, so one mode shows that they are right.
    """
    function, point = problem_of(name)

    def gradients(*values):
        cost = (function(*values) ** 3).sum()
        return pt.concatenate([g.ravel() for g in pt.grad(cost, list(values))])

    verify(gradients, point, "FAST_COMPILE")


@pytest.mark.parametrize("name", [*PROBLEMS, *PADDED])
@pytest.mark.parametrize("which", ["pushforward", "Rop", "Rop with pushforward"])
def test_pushforward_and_pullback_are_adjoint(name, which):
    """<pushforward(t), c> = <t, pullback(c)>, whichever arguments have tangents."""
    function, point = problem_of(name)
    rng = np.random.default_rng(2)
    variables = [pt.constant(p).type() for p in point]
    out = function(*variables)
    c = rng.normal(size=function(*point).type.shape)
    for present in range(1, 2 ** len(point)):
        chosen = [k for k in range(len(point)) if present >> k & 1]
        wrt = [variables[k] for k in chosen]
        tangents = [rng.normal(size=point[k].shape) for k in chosen]
        if which == "pushforward":
            forward = pushforward(out, wrt, tangents)
        else:
            forward = Rop(
                out, wrt, tangents, use_op_rop_implementation=which == "Rop with pushforward"
            )
        backward = pt.grad(None, wrt, known_grads={out: pt.constant(c)})
        dots = [
            (forward * c).sum(),
            sum((g * t).sum() for g, t in zip(backward, tangents, strict=True)),
        ]
        one, other = pytensor.function(
            variables, dots, mode="FAST_COMPILE", on_unused_input="ignore"
        )(*point)
        np.testing.assert_allclose(one, other, rtol=1e-12)


@pytest.mark.parametrize("mode", MODES)
def test_hessian_vector_product(mode):
    """Through sparse_block_dot and a nonlinearity, against finite differences of the gradient."""
    function, point = problem_of("dot")
    W = pt.tensor4("W", dtype="float64")
    v = pt.tensor4("v", dtype="float64")
    cost = (pt.tanh(function(W, *point[1:])) ** 2).sum()
    gradient = pt.grad(cost, W)
    product = pt.grad((gradient * v).sum(), W)
    f = pytensor.function([W, v], [gradient, product], mode=mode, on_unused_input="ignore")
    direction = np.random.default_rng(3).normal(size=point[0].shape)
    step = 1e-6
    ahead, behind = (f(point[0] + s * direction, direction)[0] for s in (step, -step))
    np.testing.assert_allclose(
        f(point[0], direction)[1], (ahead - behind) / (2 * step), rtol=1e-6, atol=1e-8
    )


def test_a_scale_never_upcasts():
    arrays = Draw(SIZES, 1, "float32").outer()
    for alpha in (0.5, 2, np.float64(0.5), pt.scalar(dtype="float64"), pt.iscalar(), None):
        arrays["alpha"] = alpha
        assert sparse_block_outer(**arrays).dtype == "float32"


def test_derivative_of_a_scale_of_another_dtype():
    arrays = Draw(SIZES, 1, "float32").outer()
    alpha = arrays["alpha"] = pt.scalar("alpha", dtype="float64")
    gradient = pt.grad(sparse_block_outer(**arrays).sum(), alpha)
    expected = sum(
        np.outer(x, y).sum()
        for b in range(SIZES.batch)
        for x in arrays["x"][b]
        for y in arrays["y"][b]
    )
    actual = gradient.eval({alpha: 0.0}, mode=in_python("NUMBA"))
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


@pytest.mark.parametrize("name", PROBLEMS)
def test_integers_have_gradient_zero(name):
    build, draw, wrt = PROBLEMS[name]
    arrays = draw(Draw(SIZES, 1, "int64"))
    variables = symbols(arrays)
    cost = build(**variables).astype("float64").sum()
    gradients = pt.grad(cost, [variables[argument] for argument in wrt])
    function = pytensor.function(
        list(variables.values()), gradients, mode="FAST_COMPILE", on_unused_input="ignore"
    )
    assert not any(gradient.any() for gradient in function(*arrays.values()))


@pytest.mark.parametrize("name", ["gemv", "outer"])
def test_complex_gradients_are_refused(name):
    op, draw, _ = PROBLEMS[name]
    out = op(*symbols(draw(Draw(SIZES, 1, "complex128"))).values())
    with pytest.raises(TypeError, match="gradients are defined for real dtypes"):
        op.pullback(out.owner.inputs, [out], [out])


@pytest.mark.parametrize(
    ("build", "draw", "indices"),
    [
        (sparse_block_gemv, Draw.gemv, ["inputIdx", "outputIdx"]),
        (sparse_block_dot, Draw.dot, ["inputIdx", "outputIdx"]),
        (sparse_block_outer, Draw.outer, ["xIdx", "yIdx"]),
    ],
)
def test_indices_have_no_gradient(build, draw, indices):
    variables = symbols(draw(Draw(SIZES, 1, "float64")))
    cost = build(**variables).sum()
    for index in indices:
        with pytest.raises(DisconnectedInputError):
            pt.grad(cost, variables[index])


@pytest.mark.parametrize(
    ("op", "draw"),
    [(sparse_block_gemv_inplace, Draw.gemv), (sparse_block_outer_inplace, Draw.outer)],
)
def test_derivatives_of_the_in_place_twin_do_not_destroy(op, draw):
    variables = symbols(draw(Draw(SIZES, 1, "float64")))
    out = op(*variables.values())
    for gradient in op.pullback(out.owner.inputs, [out], [out.type()]):
        for node in pytensor.graph.ancestors([gradient]):
            if node.owner and isinstance(node.owner.op, SparseBlockGemv | SparseBlockOuter):
                assert not node.owner.op.inplace


@pytest.mark.parametrize("op", [sparse_block_gemv, sparse_block_outer])
def test_grad_is_pullback_under_its_old_name(op):
    draw = {sparse_block_gemv: Draw.gemv, sparse_block_outer: Draw.outer}[op]
    node = op(*symbols(draw(Draw(SIZES, 1, "float64"))).values()).owner
    cotangents = [node.outputs[0].type()]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        old = op.grad(node.inputs, cotangents)
        new = op.pullback(node.inputs, node.outputs, cotangents)
    assert [g.type for g in old] == [g.type for g in new]
