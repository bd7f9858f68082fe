"""What an index out of range does on each backend that is an array library."""

from functools import cache

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from cases import ARRAY_MODES, Draw, Sizes, array_modes, symbols
from test_errors import WRONG_INDICES

from blocksparse_ops import sparse_block_dot, sparse_block_gemv

SIZES = Sizes(iBlocks=3, oBlocks=4, iSize=5, oSize=6, iWin=2, oWin=3, batch=7)
# Enough rows for each block that the triples are sorted.
SORTED = Sizes(iBlocks=1, oBlocks=2, iSize=5, oSize=6, iWin=2, oWin=3, batch=7)
# One place a window, and more outputs than inputs.
SINGLE = Sizes(iBlocks=3, oBlocks=4, iSize=2, oSize=6, iWin=1, oWin=1, batch=7)


@cache
def dot_and_gradients(mode, dtype):
    """W, h, b, both indices -> the product, and the gradients of its weighted sum."""
    arrays = Draw(SIZES, 0, "float64", (dtype, dtype)).dot()
    inputs = symbols(arrays)
    weights = pt.tensor3("weights", dtype="float64")
    out = sparse_block_dot(**inputs)
    gradients = pt.grad((weights * out).sum(), [inputs[name] for name in ("W", "h", "b")])
    return pytensor.function([*inputs.values(), weights], [out, *gradients], mode=mode)


def draw_wrong(sizes, which, index_dtype, wrong):
    """Arguments of a dot with a wrong index at the last place of the last example."""
    arrays = Draw(sizes, 0, "float64", (index_dtype, index_dtype)).dot()
    name = ("inputIdx", "outputIdx")[which]
    arrays[name][-1, -1] = wrong((sizes.iBlocks, sizes.oBlocks)[which])
    return arrays


def assert_nan_exactly_where(values, rows):
    np.testing.assert_array_equal(np.isnan(values), np.broadcast_to(rows[..., None], values.shape))


@pytest.mark.parametrize(
    "sizes", [SIZES, SORTED, SINGLE], ids=["as they stand", "sorted", "single"]
)
@pytest.mark.parametrize("which", [0, 1], ids=["input", "output"])
@pytest.mark.parametrize(("index_dtype", "wrong"), WRONG_INDICES)
@pytest.mark.parametrize("mode", ARRAY_MODES)
def test_a_wrong_index(mode, index_dtype, wrong, which, sizes):
    """PyTorch raises; else results that depend on it are NaN and updates by it are dropped."""
    arrays = draw_wrong(sizes, which, index_dtype, wrong)
    function = dot_and_gradients(mode, index_dtype)
    weights = np.random.default_rng(1).normal(size=(sizes.batch, sizes.oWin, sizes.oSize))
    if mode == "PYTORCH":
        with pytest.raises(IndexError, match=r"SparseBlock\w+: .* is out of range"):
            function(*arrays.values(), weights)
        return
    out, g_W, g_h, g_b = map(np.asarray, function(*arrays.values(), weights))
    # Of the last example all output blocks use a wrong input block, but only one is a wrong one.
    wrong_outputs = np.zeros(out.shape[:2], bool)
    wrong_outputs[-1, slice(None) if which == 0 else -1] = True
    np.testing.assert_array_equal(
        np.isnan(out), np.broadcast_to(wrong_outputs[..., None], out.shape)
    )
    wrong_inputs = np.zeros(g_h.shape[:2], bool)
    wrong_inputs[-1, slice(None) if which == 1 else -1] = True
    np.testing.assert_array_equal(
        np.isnan(g_h), np.broadcast_to(wrong_inputs[..., None], g_h.shape)
    )
    # What the right ones give is what they give alone, with no weight on the wrong ones.
    arrays[("inputIdx", "outputIdx")[which]][-1, -1] = 0
    if which == 0:
        arrays["h"][-1, -1] = 0
    else:
        weights[-1, -1] = 0
    right = dot_and_gradients("FAST_COMPILE", index_dtype)(*arrays.values(), weights)
    np.testing.assert_allclose(out[~wrong_outputs], right[0][~wrong_outputs])
    np.testing.assert_allclose(g_W, right[1])
    np.testing.assert_allclose(g_h[~wrong_inputs], right[2][~wrong_inputs])
    if which == 1:
        np.testing.assert_allclose(g_b, right[3])


@pytest.mark.parametrize("mode", array_modes("JAX", "MLX"))
def test_a_wrong_constant_is_told_when_the_graph_is_compiled(mode):
    W, h = pt.tensor("W", shape=(2, 3, 4, 5)), pt.tensor3("h")
    out = sparse_block_dot(W, h, [[0]], None, pt.as_tensor([[1]]) + 2)
    with pytest.raises(IndexError, match=r"SparseBlockGemv: outputIdx\[0, 0\] = 3"):
        pytensor.function([W, h], out, mode=mode)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int64", "uint64"])
@pytest.mark.parametrize("mode", array_modes("JAX", "MLX"))
def test_a_wrong_index_of_integers(mode, dtype):
    """What stands for no number is the least, or of those without a sign the largest."""
    o, W, h = (np.ones(shape, dtype) for shape in ((2, 1, 1), (3, 1, 2, 1), (2, 1, 2)))
    index, zeros = pt.lmatrix("index"), np.zeros((2, 1), "int64")
    product = pytensor.function([index], sparse_block_gemv(o, W, h, index, zeros), mode=mode)
    limits = np.iinfo(dtype)
    expected = [3, limits.max if limits.min == 0 else limits.min]
    np.testing.assert_array_equal(np.ravel(product(np.array([[2], [3]]))), expected)
