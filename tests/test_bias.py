"""The bias of a product: where PyTensor's own gather fails, and its step in place."""

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from cases import ALL_MODES, MODES, Draw, Sizes, array_modes, in_python

from blocksparse_ops import SparseBlockOuter, sparse_block_dot
from blocksparse_ops.zeros import BlockZeros

SIZES = Sizes(iBlocks=3, oBlocks=4, iSize=5, oSize=6, iWin=2, oWin=3, batch=7)
ONE = Sizes(iBlocks=3, oBlocks=4, iSize=5, oSize=6, iWin=1, oWin=1, batch=1)


def drawn(sizes, known=()):
    """Arrays of a dot, and a variable of each, of known shape or not."""
    arrays = Draw(sizes, 0, "float64").dot()
    inputs = {
        name: pt.tensor(name, dtype=a.dtype, shape=a.shape if name in known else (None,) * a.ndim)
        for name, a in arrays.items()
    }
    return arrays, inputs


def compare(inputs, outputs, arrays, mode):
    results = [
        pytensor.function(list(inputs.values()), outputs, mode=m)(*arrays.values())
        for m in (mode, "FAST_COMPILE")
    ]
    for one, other in zip(*results, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def product_and_step(inputs):
    y = sparse_block_dot(**inputs)
    return [y, inputs["b"] - 0.1 * pt.grad((y**2).sum(), inputs["b"])]


@pytest.mark.parametrize("mode", ALL_MODES[1:])
def test_one_example_with_one_output_block(mode):
    arrays, inputs = drawn(ONE)
    compare(inputs, product_and_step(inputs), arrays, mode)


@pytest.mark.parametrize("mode", array_modes("JAX"))
@pytest.mark.parametrize("known", [("b",), ("outputIdx",), ("b", "outputIdx"), ("W",), ("h",)])
def test_some_shapes_known(known, mode):
    arrays, inputs = drawn(SIZES, known)
    compare(inputs, product_and_step(inputs), arrays, mode)


USES = {
    "once": lambda W, h, i, b, j: sparse_block_dot(W, h, i, b, j),
    "twice": lambda W, h, i, b, j: (
        sparse_block_dot(W, h, i, b, j) + sparse_block_dot(W, 2 * h, i // 2, b, j // 2)
    ),
    "both ways": lambda W, h, i, b, j: sparse_block_dot(
        W.transpose(1, 0, 3, 2), sparse_block_dot(W, h, i, b, j), j, None, i
    ),
    "transposed": lambda W, h, i, b, j: sparse_block_dot(W.transpose(1, 0, 3, 2), h, i, b, j),
}
OUTERS = {"once": 2, "twice": 4, "both ways": 3, "transposed": 2}


@pytest.mark.parametrize("is_known", [False, True])
@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("mode", MODES[1:])
def test_a_step_of_all_parameters_is_outers_in_place(mode, use, is_known):
    if use != "both ways":
        mode = in_python(mode)
    arrays, inputs = drawn(SIZES)
    if use == "transposed":
        arrays["W"] = np.ascontiguousarray(arrays["W"].transpose(1, 0, 3, 2))
    values = [arrays.pop(name) for name in ("W", "b")]
    W, b = (pytensor.shared(value, shape=value.shape if is_known else None) for value in values)
    h, i, j = inputs = [inputs[name] for name in arrays]
    loss = (USES[use](W, h, i, b, j) ** 2).sum()
    updates = [(p, p - 0.01 * pt.grad(loss, p)) for p in (W, b)]
    dense = pytensor.function(inputs, [new for _, new in updates], mode="FAST_COMPILE")
    expected = dense(*arrays.values())
    function = pytensor.function(inputs, updates=updates, mode=mode)
    nodes = function.maker.fgraph.toposort()
    outers = [node for node in nodes if isinstance(node.op, SparseBlockOuter)]
    assert len(outers) == OUTERS[use]
    for node in outers:
        o = node.inputs[0]
        assert node.op.inplace
        assert not (o.owner and isinstance(o.owner.op, BlockZeros))
    function(*arrays.values())
    for parameter, value in zip((W, b), expected, strict=True):
        np.testing.assert_allclose(parameter.get_value(), value, rtol=1e-9, atol=1e-9)
