"""SciPy's block-sparse matrices, which one pattern for the whole batch fits."""

import numpy as np
from scipy.sparse import bsr_array
from timing import Call


class BSR:
    """W's blocks in use as one sparse matrix, made once; rows scattered and gathered per call."""

    only = ("shared",)

    def matrix(self, W, i, j):
        """The transpose of W with the used blocks alone, for products with columns."""
        i, j = np.unique(i), np.unique(j)
        blocks = W[i[:, None], j].transpose(1, 0, 3, 2).reshape(-1, W.shape[3], W.shape[2])
        starts = np.zeros(W.shape[1] + 1, int)
        starts[j + 1] = len(i)
        shape = (W.shape[1] * W.shape[3], W.shape[0] * W.shape[2])
        return bsr_array((blocks.copy(), np.tile(i, len(j)), starts.cumsum()), shape=shape)

    def gemv(self, o, W, h, i, j):
        matrix = self.matrix(W, i, j)
        batch = len(h)

        def run():
            spread = np.zeros((W.shape[0], W.shape[2], batch), h.dtype)
            np.add.at(spread, i, h.transpose(1, 2, 0))
            product = (matrix @ spread.reshape(-1, batch)).reshape(W.shape[1], W.shape[3], batch)
            return o + product[j].transpose(2, 0, 1)

        return Call(run)

    def forward(self, p):
        return self.gemv(p.o, p.W, p.h, p.inputIdx[0], p.outputIdx[0])

    def gradient_in_h(self, p):
        return self.gemv(p.h, p.W.transpose(1, 0, 3, 2), p.y, p.outputIdx[0], p.inputIdx[0])
