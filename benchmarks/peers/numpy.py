"""NumPy: gather and matmul, scatter with add.at."""

import numpy as np
from memory import settled
from problems import ALPHA, LEARNING_RATE
from timing import Call

from peers import gather


class NumPy:
    gathered_copies = gather.COPIES

    def forward(self, p):
        return Call(lambda: gather.forward(p.o, p.W, p.h, p.inputIdx, p.outputIdx))

    def gradient_in_h(self, p):
        return Call(lambda: gather.gradient_in_h(p.h, p.W, p.y, p.inputIdx, p.outputIdx))

    def outer_in_place(self, p):
        W, at, alpha = settled(p.W), gather.pairs(p.inputIdx, p.outputIdx), p.dtype.type(ALPHA)
        return Call(lambda: np.add.at(W, at, gather.products(p.h, p.y, alpha)), lambda _: [W])

    def outer_into_zeros(self, p):
        at = gather.pairs(p.inputIdx, p.outputIdx)

        def run():
            gradient = np.zeros_like(p.W)
            np.add.at(gradient, at, gather.products(p.h, p.y, p.dtype.type(1)))
            return gradient

        return Call(run)

    def training_step(self, p):
        W, b, at = settled(p.W), p.b.copy(), gather.pairs(p.inputIdx, p.outputIdx)
        rate = p.dtype.type(LEARNING_RATE)

        def run():
            y = gather.forward(b[p.outputIdx], W, p.h, p.inputIdx, p.outputIdx)
            y *= 2 / y.dtype.type(y.size)
            np.add.at(W, at, gather.products(p.h, y, -rate))
            np.add.at(b, p.outputIdx, -rate * y)

        return Call(run, lambda _: [W, b])


class Dense:
    """One product with the whole of W as a matrix: what full windows in order come down to."""

    only = ("full",)

    def matrices(self, p):
        W = p.W.transpose(0, 2, 1, 3).reshape(p.h[0].size, p.y[0].size)
        return W, p.h.reshape(len(p.h), -1), p.y.reshape(len(p.y), -1)

    def forward(self, p):
        W, h, _ = self.matrices(p)
        return Call(lambda: h @ W, lambda result: [p.o + result.reshape(p.o.shape)])

    def gradient_in_h(self, p):
        W, _, y = self.matrices(p)
        return Call(lambda: y @ W.T, lambda result: [p.h + result.reshape(p.h.shape)])

    def outer_into_zeros(self, p):
        _, h, y = self.matrices(p)
        s = p.sizes
        apart = (s.iBlocks, s.iSize, s.oBlocks, s.oSize)
        return Call(lambda: h.T @ y, lambda result: [result.reshape(apart).transpose(0, 2, 1, 3)])
