# ruff: noqa: T201
"""What a step of common optimizers takes on block-sparse weights, few of them in use.

    python benchmarks/optimizers.py

Gradient descent adds to the blocks in use; the others use the gradient for more than an addition,
so that each step goes over all weights. Times are medians of interleaved rounds.
"""

from functools import partial

from run import hold_threads

if __name__ == "__main__":
    hold_threads(1)

import numpy as np
import pytensor
import pytensor.tensor as pt
from large import Zeros
from ours import shared, symbol
from problems import cases
from report import ms, table
from timing import rounds_of

from blocksparse_ops import sparse_block_dot

RATE = np.float32(1e-3)
ROUNDS = 15
SIDES = (64, 256)  # blocks along either axis of the weights


def descent(W, g):
    return {W: W - RATE * g}


def clipped_by_norm(W, g):
    norm = pt.sqrt((g**2).sum())
    return {W: W - RATE / pt.maximum(norm, 1) * g}


def zeros_like(W):
    return pytensor.shared(np.zeros_like(W.get_value(borrow=True)))


def momentum(W, g):
    v = zeros_like(W)
    new_v = np.float32(0.9) * v - RATE * g
    return {v: new_v, W: W + new_v}


def adam(W, g):
    m, s = zeros_like(W), zeros_like(W)
    new_m = np.float32(0.9) * m + np.float32(0.1) * g
    new_s = np.float32(0.999) * s + np.float32(0.001) * g**2
    return {m: new_m, s: new_s, W: W - RATE * new_m / (pt.sqrt(new_s) + np.float32(1e-8))}


OPTIMIZERS = {
    "gradient descent": descent,
    "clipped by its norm": clipped_by_norm,
    "momentum": momentum,
    "Adam": adam,
}


def step(side, updates_of):
    """A step on a few examples of 8 x 8 blocks of 32 x 32 each."""
    p = Zeros("few", cases.Sizes(side, side, 32, 32, 8, 8, batch=4), "float32")
    W = shared(p.W, "W")
    inputs = h, inputIdx, outputIdx = [symbol("", a) for a in (p.h, p.inputIdx, p.outputIdx)]
    loss = (sparse_block_dot(W, h, inputIdx, None, outputIdx) ** 2).mean()
    train = pytensor.function(inputs, updates=updates_of(W, pt.grad(loss, W)))
    return partial(train, p.h, p.inputIdx, p.outputIdx)


def times(side):
    runs = {name: step(side, updates_of) for name, updates_of in OPTIMIZERS.items()}
    taken = rounds_of(runs, ROUNDS)
    return {name: ms(float(np.median(series))) for name, series in taken.items()}


if __name__ == "__main__":
    columns = {f"{side} x {side} blocks": times(side) for side in SIDES}
    rows = [[name, *(column[name] for column in columns.values())] for name in OPTIMIZERS]
    print(table(["a step of", *columns], rows))
