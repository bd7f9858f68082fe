# ruff: noqa: T201
"""Problems too large for the oracle, checked by projection: in integers, and exactly.

`python tests/large_problems.py` takes some minutes and 12 GiB of addresses, of which it uses 2. All
values are -1, 0 or 1, so that sums stay exact at any depth; a result times a random vector of such
must be what the formula gives for the product of that vector and the blocks, which costs no more
than to read them. The source of the idea: BLIS's test suite projects, oneDNN's benchdnn keeps sums
exact.
"""

import argparse
import time
from functools import cache
from itertools import product

import numpy as np
import pytensor
import pytensor.tensor as pt
from cases import Sizes

from blocksparse_ops import SparseBlockGemv, SparseBlockOuter

# Many triples, small blocks and large; a deep sum; weights of more than 2**31 bytes, and of more
# than 2**31 numbers, of which few blocks are in use.
PROBLEMS = {
    "10**7 small triples": Sizes(1000, 1000, 4, 4, 10, 10, 100_000),
    "10**7 triples": Sizes(30, 30, 20, 20, 10, 10, 100_000),
    "a depth of 10**5": Sizes(2, 3, 100_000, 20, 3, 2, 40),
    "2**31 bytes": Sizes(3, 20_000, 100, 100, 2, 2, 64),
    "2**31 numbers": Sizes(5, 50_000, 100, 90, 2, 2, 64),
}
MODES = ["CVM", "NUMBA"]


def smaller(sizes):
    """The same with less examples and a depth of less."""
    s = sizes
    return Sizes(
        s.iBlocks, s.oBlocks, min(s.iSize, 5000), s.oSize, s.iWin, s.oWin, s.batch // 500 + 5
    )


@cache
def compiled(mode, op):
    """The op in place, as a function that keeps what it is given."""
    kinds = {"gemv": (3, 4, 3), "outer": (4, 3, 3)}[op]
    arrays = [pt.tensor(dtype="float32", shape=(None,) * ndim) for ndim in kinds]
    indices = pt.lmatrices(2)
    build = SparseBlockGemv() if op == "gemv" else SparseBlockOuter()
    scale = [] if op == "gemv" else [pt.constant(np.float32(1))]
    result = build(*arrays, *indices, *scale)
    inputs = [pytensor.In(arrays[0], mutable=True), *arrays[1:], *indices]
    return pytensor.function(inputs, pytensor.Out(result, borrow=True), mode=mode, trust_input=True)


class Large:
    """The operands of a problem; where there are many blocks, few are in use."""

    def __init__(self, sizes, seed=0):
        self.sizes, self.rng = sizes, np.random.default_rng(seed)
        s = sizes
        self.i = self.rng.integers(0, s.iBlocks, (s.batch, s.iWin))
        self.j = self.rng.integers(0, s.oBlocks, (s.batch, s.oWin))
        self.i[-1], self.j[-1] = s.iBlocks - 1, s.oBlocks - 1  # the last block of all

    def ones(self, *shape):
        return self.rng.integers(-1, 2, shape, np.int8).astype(np.float32)

    def blocks(self):
        """Weights of which the blocks in use are drawn, and the others, if many, zeros."""
        s = self.sizes
        W = np.zeros((s.iBlocks, s.oBlocks, s.iSize, s.oSize), np.float32)
        for i, j in self.used():
            W[i, j] = self.ones(s.iSize, s.oSize)
        return W

    def used(self):
        pairs = self.i[:, :, None] * self.sizes.oBlocks + self.j[:, None, :]
        return zip(*divmod(np.unique(pairs), self.sizes.oBlocks), strict=True)

    def triples(self):
        """Each example and place of both windows, and the block that it uses."""
        s = self.sizes
        for n, v, w in product(range(s.batch), range(s.iWin), range(s.oWin)):
            yield n, v, w, (self.i[n, v], self.j[n, w])

    def check_gemv(self, mode):
        """(o + sum h W) r = o r + sum h (W r)"""
        s = self.sizes
        W = self.blocks()
        h, o = self.ones(s.batch, s.iWin, s.iSize), self.ones(s.batch, s.oWin, s.oSize)
        r = self.ones(s.oSize)
        expected = o @ r
        projected = {pair: W[pair] @ r for pair in self.used()}
        for n, v, w, block in self.triples():
            expected[n, w] += h[n, v] @ projected[block]
        actual = compiled(mode, "gemv")(o, W, h, self.i, self.j)
        np.testing.assert_array_equal(actual @ r, expected)
        assert np.count_nonzero(expected) > expected.size / 2

    def check_outer(self, mode):
        """(sum x y^T) r = sum x (y r), block by block"""
        s = self.sizes
        x, y = self.ones(s.batch, s.iWin, s.iSize), self.ones(s.batch, s.oWin, s.oSize)
        o = np.zeros((s.iBlocks, s.oBlocks, s.iSize, s.oSize), np.float32)
        r = self.ones(s.oSize)
        expected = {pair: np.zeros(s.iSize, np.float32) for pair in self.used()}
        factors = y @ r
        for n, v, w, block in self.triples():
            expected[block] += x[n, v] * factors[n, w]
        actual = compiled(mode, "outer")(o, x, y, self.i, self.j)
        for pair, value in expected.items():
            np.testing.assert_array_equal(actual[pair] @ r, value)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--modes", nargs="+", default=MODES)
    parser.add_argument("--problems", nargs="+", default=list(PROBLEMS))
    options = parser.parse_args()
    for name in options.problems:
        for mode in options.modes:
            start = time.monotonic()
            Large(PROBLEMS[name]).check_gemv(mode)
            Large(PROBLEMS[name]).check_outer(mode)
            print(f"{name}, {mode}: exact, {time.monotonic() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
