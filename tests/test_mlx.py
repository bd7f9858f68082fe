"""What MLX adds to the tests that all backends share: its limits."""

from typing import ClassVar

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from cases import Draw, Sizes, needs_library, symbols
from pytensor.graph.replace import vectorize_graph
from test_values import LibraryValues

from blocksparse_ops import reference, sparse_block_dot, sparse_block_gemv, sparse_block_outer

pytestmark = needs_library("MLX")


class TestMlx(LibraryValues):
    mode = "MLX"
    narrowed: ClassVar = {"complex128": "complex64"}


def test_a_negative_stride_along_one_element_is_refused():
    """What the docs say of strides; a copy helps."""
    index = pt.lmatrix("index")
    out = sparse_block_dot(np.ones((2, 1, 3, 4)), np.ones((5, 1, 3)), index, None, index)
    function = pytensor.function([index], out, mode="MLX")
    column = np.zeros((5, 1), "int64")[:, ::-1]
    with pytest.raises(ValueError, match="negative strides"):
        function(column)
    np.testing.assert_array_equal(function(column.copy()), 3)


OPS = {
    "gemv": (sparse_block_gemv, Draw.gemv, reference.gemv),
    "outer": (sparse_block_outer, Draw.outer, reference.outer),
}


@pytest.mark.parametrize("name", OPS)
def test_vectorize_over_all_where_triples_are_sorted(name):
    """MLX maps no search of the sorted numbers."""
    op, draw, expected = OPS[name]
    draws = [draw(Draw(Sizes(2, 2, 3, 3, 2, 2, 20), seed, "float64")) for seed in range(3)]
    stacked = {k: np.stack([one[k] for one in draws]) for k in draws[0]}
    inputs, batched = symbols(draws[0]), symbols(stacked)
    out = vectorize_graph(op(*inputs.values()), {inputs[k]: batched[k] for k in inputs})
    function = pytensor.function(list(batched.values()), out, mode="MLX")
    for actual, one in zip(function(*stacked.values()), draws, strict=True):
        np.testing.assert_allclose(actual, expected(*one.values()), rtol=1e-12)


@pytest.mark.parametrize("name", ["W", "h"])
def test_vectorize_a_gradient_whose_tiles_end_as_often_as_there_are_triples(name):
    """MLX's compiler makes one of two arrays of zeros that are alike, and then fails to map it."""
    draws = [Draw(Sizes(1, 1, 2, 2, 1, 1, 5), seed, "float32").gemv() for seed in range(3)]
    inputs = symbols(draws[0], is_static=True)
    stacked = {k: np.stack([one[k] for one in draws]) for k in ("W", "outputIdx")}
    batched = symbols(stacked, is_static=True)
    gradient = pt.grad((sparse_block_gemv(**inputs) ** 2).sum(), inputs[name])
    out = vectorize_graph(gradient, {inputs[k]: x for k, x in batched.items()})
    arguments = [*inputs.values(), *batched.values()]
    values = [*draws[0].values(), *stacked.values()]
    actual, expected = (
        pytensor.function(arguments, out, mode=mode, on_unused_input="ignore")(*values)
        for mode in ("MLX", "FAST_COMPILE")
    )
    np.testing.assert_allclose(actual, expected, rtol=1e-5)
