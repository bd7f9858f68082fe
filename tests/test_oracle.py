"""The checker is checked: a result that is wrong in any of these ways is told."""

import numpy as np
import oracle
import pytest
from cases import Draw, Sizes

SIZES = Sizes(iBlocks=3, oBlocks=4, iSize=20, oSize=9, iWin=3, oWin=2, batch=5)


def change_a_factor(arrays):
    """One number of a row."""
    arrays["h"][2, 1, 7] += 1


def drop_a_row(arrays):
    arrays["h"][4, 2] = 0


def take_another_block(arrays):
    arrays["inputIdx"][3, 0] = (arrays["inputIdx"][3, 0] + 1) % SIZES.iBlocks


def transpose_a_block(arrays):
    corner = arrays["W"][1, 2][: SIZES.oSize, : SIZES.oSize]
    corner[...] = corner.T.copy()


def forget_what_is_added_to(arrays):
    arrays["o"][:] = 0


def count_a_window_twice(arrays):
    arrays["h"] = np.concatenate([arrays["h"], arrays["h"][:, :1]], 1)
    arrays["inputIdx"] = np.concatenate([arrays["inputIdx"], arrays["inputIdx"][:, :1]], 1)


FAULTS = [
    change_a_factor,
    drop_a_row,
    take_another_block,
    transpose_a_block,
    forget_what_is_added_to,
    count_a_window_twice,
]


def problem(dtype="float32", **options):
    arrays = Draw(SIZES, 0, dtype, **options).gemv()
    return arrays, oracle.gemv(*arrays.values())


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_beyond_the_bound(fault, dtype):
    arrays, expected = problem(dtype)
    right = oracle.gemv(*arrays.values())[0].astype(dtype)
    oracle.assert_within_bound(right, expected)
    fault(arrays)
    wrong = oracle.gemv(*arrays.values())[0].astype(dtype)
    with pytest.raises(AssertionError, match="exceeds its bound"):
        oracle.assert_within_bound(wrong, expected)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_not_exact(fault):
    arrays, expected = problem("float64", integers=True)
    fault(arrays)
    wrong = oracle.gemv(*arrays.values())[0].astype("float64")
    with pytest.raises(AssertionError):
        oracle.assert_exact(wrong, expected)


@pytest.mark.parametrize("scale", [1, np.finfo("float32").tiny * 1e6])
def test_sums_in_lower_precision_are_beyond_the_bound(scale):
    """Also of small numbers, whose bound is no wider for that."""
    arrays, _ = problem()
    arrays["h"] *= np.float32(scale)
    arrays["o"] *= np.float32(scale)
    expected = oracle.gemv(*arrays.values())
    right = expected[0].astype("float32")
    oracle.assert_within_bound(right, expected)
    with pytest.raises(AssertionError, match="exceeds its bound"):
        oracle.assert_within_bound((right * (1 + 2.0**-10)).astype("float32"), expected)


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_what_is_not_finite_is_told(wrong):
    _, expected = problem()
    actual = expected[0].astype("float32")
    actual[1, 1, 1] = wrong
    with pytest.raises(AssertionError):
        oracle.assert_within_bound(actual, expected)


def test_a_number_where_there_must_be_none_is_told():
    arrays, _ = problem()
    arrays["o"][0, 0, 0] = np.nan
    expected = oracle.gemv(*arrays.values())
    with pytest.raises(AssertionError):
        oracle.assert_within_bound(np.nan_to_num(expected[0]).astype("float32"), expected)


def test_outers():
    arrays = Draw(SIZES, 0, "float32").outer()
    expected = oracle.outer(*arrays.values())
    oracle.assert_within_bound(expected[0].astype("float32"), expected)
    for name in ("x", "y"):
        changed = {key: array.copy() for key, array in arrays.items()}
        changed[name][2, 1] = 0
        with pytest.raises(AssertionError, match="exceeds its bound"):
            oracle.assert_within_bound(
                oracle.outer(*changed.values())[0].astype("float32"), expected
            )
