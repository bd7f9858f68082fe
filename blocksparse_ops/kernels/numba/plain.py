"""Both ops as plain loops, for what is neither float32 nor float64; all has been checked."""

import numpy as np

from blocksparse_ops.kernels.numba.check import NO_BLOCK, is_padding
from blocksparse_ops.kernels.numba.compile import kernel


@kernel
def plain_gemv(out, W, h, inputIdx, outputIdx, one, known):
    """out[n, w] += sum_v h[n, v] @ W[inputIdx[n, v], outputIdx[n, w]]"""
    for n in range(h.shape[0]):
        for w in range(out.shape[1]):
            for v in range(h.shape[1]):
                i, j = np.int64(inputIdx[n, v]), np.int64(outputIdx[n, w])
                if is_padding(i, known) or is_padding(j, known):
                    continue
                block = W[i, j]
                for p in range(block.shape[0]):
                    for q in range(block.shape[1]):
                        out[n, w, q] += h[n, v, p] * block[p, q]


@kernel
def plain_outer(out, x, y, xIdx, yIdx, alpha, known):
    """out[xIdx[n, v], yIdx[n, w]] += alpha * outer(x[n, v], y[n, w])"""
    for n in range(x.shape[0]):
        for v in range(x.shape[1]):
            for w in range(y.shape[1]):
                i, j = np.int64(xIdx[n, v]), np.int64(yIdx[n, w])
                if is_padding(i, known) or is_padding(j, known):
                    continue
                block = out[i, j]
                for p in range(x.shape[2]):
                    scaled = alpha * x[n, v, p]
                    for q in range(y.shape[2]):
                        block[p, q] += scaled * y[n, w, q]


@kernel
def plain_gradient(W, x, y, xIdx, yIdx, alpha, known):
    """The blocks that an outer product on zeros adds to, and what it adds to each."""
    window, oBlocks = x.shape[1] * y.shape[1], W.shape[1]
    numbers = np.empty(x.shape[0] * window, np.int64)
    for t in range(numbers.size):
        n, v, w = t // window, t % window // y.shape[1], t % y.shape[1]
        i, j = np.int64(xIdx[n, v]), np.int64(yIdx[n, w])
        numbers[t] = NO_BLOCK
        if not is_padding(i, known) and not is_padding(j, known):
            i, j = i + (i < 0) * W.shape[0], j + (j < 0) * oBlocks
            numbers[t] = i * oBlocks + j
    used = np.unique(numbers[numbers != NO_BLOCK])
    values = np.zeros((used.size, x.shape[2], y.shape[2]), x.dtype)
    for t in range(numbers.size):
        if numbers[t] == NO_BLOCK:
            continue
        n, v, w = t // window, t % window // y.shape[1], t % y.shape[1]
        block = values[np.searchsorted(used, numbers[t])]
        for p in range(x.shape[2]):
            scaled = alpha * x[n, v, p]
            for q in range(y.shape[2]):
                block[p, q] += scaled * y[n, w, q]
    return used // max(oBlocks, 1), used % max(oBlocks, 1), values
