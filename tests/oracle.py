"""What the ops mean, as plain loops in extended precision; written apart from the package."""

from itertools import product

import numpy as np

WIDER = {"f": np.longdouble, "c": np.clongdouble}


def widen(array):
    return array.astype(WIDER.get(array.dtype.kind, array.dtype))


def gemv(o, W, h, inputIdx, outputIdx, padding_idx=None):
    """Return the value, and for its error bound the sum of magnitudes and the terms in a sum."""
    value, magnitude = widen(o), widen(abs(o))
    W, h = widen(W), widen(h)
    (batch, oWin), iWin = outputIdx.shape, inputIdx.shape[1]
    for n, w, v in product(range(batch), range(oWin), range(iWin)):
        i, j = int(inputIdx[n, v]), int(outputIdx[n, w])
        if padding_idx in (i, j):
            continue
        block = W[i, j]
        value[n, w] += h[n, v] @ block
        magnitude[n, w] += abs(h[n, v]) @ abs(block)
    return value, magnitude, iWin * W.shape[2] + 1


def dot(W, h, inputIdx, b, outputIdx, padding_idx=None):
    bias = np.zeros((*outputIdx.shape, b.shape[1]), b.dtype)
    for place, j in np.ndenumerate(outputIdx):
        if int(j) != padding_idx:
            bias[place] = b[int(j)]
    return gemv(bias, W, h, inputIdx, outputIdx, padding_idx)


def outer(o, x, y, xIdx, yIdx, alpha, padding_idx=None):
    value, magnitude = widen(o), widen(abs(o))
    x, y, alpha = widen(x), widen(y), widen(np.asarray(alpha))
    (batch, xWin), yWin = xIdx.shape, yIdx.shape[1]
    for n, v, w in product(range(batch), range(xWin), range(yWin)):
        block = int(xIdx[n, v]), int(yIdx[n, w])
        if padding_idx in block:
            continue
        value[block] += alpha * np.outer(x[n, v], y[n, w])
        magnitude[block] += abs(alpha) * np.outer(abs(x[n, v]), abs(y[n, w]))
    return value, magnitude, batch * xWin * yWin + 2


def assert_within_bound(actual, expected):
    """Assert |actual - value| <= 2 n eps sum |terms|, elementwise; integers must be equal.

    What should be NaN must be NaN.
    """
    value, magnitude, terms = expected
    assert actual.shape == value.shape
    if actual.dtype.kind in "biu":
        np.testing.assert_array_equal(actual, value.astype(actual.dtype))
        return
    eps = np.finfo(actual.dtype).eps
    is_nan = np.isnan(value)
    np.testing.assert_array_equal(np.isnan(actual), is_nan)
    value, magnitude, actual = (x[~is_nan] for x in (value, magnitude, actual))
    error = abs(widen(actual) - value)
    bound = 2 * terms * eps * abs(magnitude)
    # Products below the smallest normal number lose relative precision.
    bound = bound + terms * np.finfo(actual.dtype).tiny
    assert np.all(error <= bound), f"error {error.max()} exceeds its bound {bound.min()}"


def assert_exact(actual, expected):
    """Assert equality bit for bit: for data whose sums are exact, as small integers are."""
    np.testing.assert_array_equal(actual, expected[0].astype(actual.dtype))
