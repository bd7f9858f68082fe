"""NaNs, infinities, zeros and what is too large or too small: one rule for all backends.

What is not finite in a block, a row or a scale that is used comes out as the formula has it, and
touches nothing else. docs/backends.md has the rule, and what is free.
"""

import numpy as np
import oracle
import pytensor
import pytest
from cases import ALL_MODES, LIBRARIES, Draw, Sizes, symbols

from blocksparse_ops import sparse_block_gemv, sparse_block_outer

# As the examples stand, and sorted; of the latter some blocks of one row, and windows of one.
SIZES = {
    "direct": Sizes(iBlocks=4, oBlocks=3, iSize=5, oSize=4, iWin=2, oWin=2, batch=6),
    "sorted": Sizes(iBlocks=4, oBlocks=3, iSize=19, oSize=33, iWin=2, oWin=2, batch=6),
}
OPS = {
    "gemv": (sparse_block_gemv, Draw.gemv, oracle.gemv),
    "outer": (sparse_block_outer, Draw.outer, oracle.outer),
}
PLACES = [("gemv", name) for name in ("o", "W", "h")] + [
    ("outer", name) for name in ("o", "x", "y", "alpha")
]
NAN, INF = np.nan, np.inf


def drawn(op, kind):
    """Arguments of an op, and what makes of them what it must compute."""
    _, draw, expect = OPS[op]
    return draw(Draw(SIZES[kind], 0, "float32")), expect


def compiled(mode, op, arrays):
    inputs = symbols(arrays)
    build, *_ = OPS[op]
    function = pytensor.function([*inputs.values()], build(*inputs.values()), mode=mode)
    return lambda *values: np.asarray(function(*values))


def assert_alike(actual, expected):
    """NaNs and infinities where they must be, and all else within the bound."""
    value, magnitude, terms = expected
    is_finite = np.isfinite(value)
    np.testing.assert_array_equal(actual[~is_finite], value[~is_finite].astype(actual.dtype))
    oracle.assert_within_bound(actual[is_finite], (value[is_finite], magnitude[is_finite], terms))


@pytest.fixture(autouse=True)
def quiet():
    with np.errstate(all="ignore"):
        yield


@pytest.mark.parametrize("mode", ALL_MODES)
@pytest.mark.parametrize("kind", SIZES)
@pytest.mark.parametrize("op", OPS)
def test_what_is_not_finite_goes_where_the_formula_has_it(op, kind, mode):
    """Beside zeros, too: 0 * inf is NaN. What uses no such value keeps its own."""
    arrays, expect = drawn(op, kind)
    function = compiled(mode, op, arrays)
    for name in [name for of, name in PLACES if of == op]:
        for value in (NAN, INF, -INF):
            changed = {key: array.copy() for key, array in arrays.items()}
            changed[name].reshape(-1)[-1] = value
            for other in {"W": "h", "h": "W", "x": "y", "y": "x"}.get(name, ""):
                changed[other].reshape(-1)[:3] = 0
            actual, expected = function(*changed.values()), expect(*changed.values())
            if name == "alpha" and np.isinf(value):
                # Products of both signs may be summed before they are scaled, or after.
                np.testing.assert_array_equal(np.isfinite(actual), np.isfinite(expected[0]))
            else:
                assert_alike(actual, expected)


@pytest.mark.parametrize("mode", ALL_MODES)
@pytest.mark.parametrize("kind", SIZES)
def test_scales(kind, mode):
    """By 1, -1 and a power of two exact; by 0 nothing is added, not even what is not finite."""
    arrays = Draw(SIZES[kind], 0, "float64", integers=True).outer()
    function = compiled(mode, "outer", arrays)
    for alpha in (1.0, -1.0, 0.5, 0.0):
        arrays["alpha"] = np.float64(alpha)
        oracle.assert_exact(function(*arrays.values()), oracle.outer(*arrays.values()))
    arrays["x"][:] = NAN
    arrays["alpha"] = np.float64(0)
    np.testing.assert_array_equal(function(*arrays.values()), arrays["o"])


@pytest.mark.parametrize("mode", ALL_MODES)
@pytest.mark.parametrize("kind", SIZES)
@pytest.mark.parametrize("op", OPS)
def test_zeros_are_equal_whatever_their_sign(op, kind, mode):
    arrays, _ = drawn(op, kind)
    for name in set(arrays) & {"o", "W", "h", "x", "y"}:
        arrays[name][:] = -0.0
    actual = compiled(mode, op, arrays)(*arrays.values())
    np.testing.assert_array_equal(actual, np.zeros_like(actual))


@pytest.mark.parametrize("mode", ALL_MODES)
@pytest.mark.parametrize("kind", SIZES)
@pytest.mark.parametrize("op", OPS)
def test_numbers_below_the_smallest_normal_one(op, kind, mode):
    """Within the bound, which allows for flushing each term, as a library may."""
    arrays, expect = drawn(op, kind)
    tiny = np.finfo("float32").tiny
    for name in set(arrays) & {"o", "W", "x"}:
        arrays[name] *= tiny / 8
    actual = compiled(mode, op, arrays)(*arrays.values())
    oracle.assert_within_bound(actual, expect(*arrays.values()))
    if mode not in LIBRARIES:
        assert ((actual != 0) & (abs(actual) < tiny)).any()


@pytest.mark.parametrize("mode", ALL_MODES)
@pytest.mark.parametrize("kind", SIZES)
def test_what_overflows_is_one_of_what_some_order_gives(kind, mode):
    """Of two terms that cancel, each too large: nothing, or NaN, or infinite; never a number else.

    And a sum that is too large in any order is infinite.
    """
    s = SIZES[kind]
    arrays = Draw(s, 0, "float32").gemv()
    large = np.finfo("float32").max / 2
    arrays["o"][:], arrays["W"][:] = 0, large
    function = compiled(mode, "gemv", arrays)
    arrays["h"][:] = 4
    assert (function(*arrays.values()) == INF).all()
    arrays["h"][:, 0] = -4
    actual = function(*arrays.values())
    assert (np.isnan(actual) | np.isinf(actual) | (actual == 0)).all()


@pytest.mark.parametrize("mode", ALL_MODES)
@pytest.mark.parametrize("kind", SIZES)
def test_a_product_that_only_some_order_can_hold(kind, mode):
    """alpha * x * y is 1e-30, but alpha * x too small: either is what some order gives."""
    arrays = Draw(SIZES[kind], 0, "float32").outer()
    arrays["o"][:], arrays["x"][:], arrays["y"][:] = 0, 1e-30, 1e30
    arrays["alpha"] = np.float32(1e-30)
    actual = compiled(mode, "outer", arrays)(*arrays.values())
    value, _, terms = oracle.outer(*arrays.values())
    is_value = abs(actual - value.astype("float32")) <= 2 * terms * np.finfo("float32").eps * value
    assert (is_value | (actual == 0)).all()
