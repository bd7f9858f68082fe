"""Both ops as plain loops, for what is neither float32 nor float64; all has been checked."""

import numpy as np

from blocksparse_ops.kernels.numba.compile import kernel


@kernel
def plain_gemv(out, W, h, inputIdx, outputIdx, one):
    """out[n, w] += sum_v h[n, v] @ W[inputIdx[n, v], outputIdx[n, w]]"""
    for n in range(h.shape[0]):
        for w in range(out.shape[1]):
            for v in range(h.shape[1]):
                block = W[np.int64(inputIdx[n, v]), np.int64(outputIdx[n, w])]
                for p in range(block.shape[0]):
                    for q in range(block.shape[1]):
                        out[n, w, q] += h[n, v, p] * block[p, q]


@kernel
def plain_outer(out, x, y, xIdx, yIdx, alpha):
    """out[xIdx[n, v], yIdx[n, w]] += alpha * outer(x[n, v], y[n, w])"""
    for n in range(x.shape[0]):
        for v in range(x.shape[1]):
            for w in range(y.shape[1]):
                block = out[np.int64(xIdx[n, v]), np.int64(yIdx[n, w])]
                for p in range(x.shape[2]):
                    scaled = alpha * x[n, v, p]
                    for q in range(y.shape[2]):
                        block[p, q] += scaled * y[n, w, q]
