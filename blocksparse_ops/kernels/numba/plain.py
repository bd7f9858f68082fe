"""Both ops as plain loops, for what is neither float32 nor float64; all has been checked."""

import numpy as np

from blocksparse_ops.kernels.numba.compile import kernel


@kernel
def plain_gemv(out, W, h, inputIdx, outputIdx):
    """out[b, w] += sum_v h[b, v] @ W[inputIdx[b, v], outputIdx[b, w]]"""
    for b in range(h.shape[0]):
        for w in range(out.shape[1]):
            for v in range(h.shape[1]):
                block = W[np.int64(inputIdx[b, v]), np.int64(outputIdx[b, w])]
                for k in range(block.shape[0]):
                    for n in range(block.shape[1]):
                        out[b, w, n] += h[b, v, k] * block[k, n]


@kernel
def plain_outer(out, x, y, xIdx, yIdx, alpha):
    """out[xIdx[b, v], yIdx[b, w]] += alpha * outer(x[b, v], y[b, w])"""
    for b in range(x.shape[0]):
        for v in range(x.shape[1]):
            for w in range(y.shape[1]):
                block = out[np.int64(xIdx[b, v]), np.int64(yIdx[b, w])]
                for m in range(x.shape[2]):
                    scaled = alpha * x[b, v, m]
                    for n in range(y.shape[2]):
                        block[m, n] += scaled * y[b, w, n]
