"""The problems that are timed, and what the right answers are."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from blocksparse_ops import reference

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import cases

CASES = {
    **{name: getattr(cases, name) for name in "TMLXSE"},
    "full": replace(cases.M, iWin=cases.M.iBlocks, oWin=cases.M.oBlocks),
    "shared": cases.M,
    "between": cases.Sizes(256, 256, 16, 16, 10, 10, 80),
    # One small block an example: a row of coefficients, a matrix, an embedding.
    **{
        f"{iSize}x{oSize}": cases.Sizes(1000, 1, iSize, oSize, 1, 1, 10_000)
        for iSize, oSize in ((16, 1), (8, 8), (1, 16))
    },
}
ODD_SIZES = (33, 47, 63, 64, 100)

# Large enough that the check sees a wrong step, small enough that thousands of steps stay finite.
ALPHA = np.float64(2**-6)
LEARNING_RATE = np.float64(0.1)


class Problem:
    """The arrays of one case, and which quantities of them are wanted.

    Parameters
    ----------
    name : str
        What tables call it. "full" uses every block in order, "shared" one draw for all examples.
    sizes : Sizes
    dtype : str
    """

    def __init__(self, name, sizes, dtype):
        self.name = name
        self.sizes = sizes
        self.dtype = np.dtype(dtype)
        draw = cases.Draw(sizes, seed=0, dtype=dtype)
        for argument, array in draw.gemv().items():
            setattr(self, argument, array)
        self.y = draw.values(*self.o.shape)
        self.b = draw.values(sizes.oBlocks, sizes.oSize)
        self._truth = None, None
        # Not every peer counts negative indices from the end.
        self.inputIdx = self._pattern(self.inputIdx % sizes.iBlocks)
        self.outputIdx = self._pattern(self.outputIdx % sizes.oBlocks)

    def _pattern(self, index):
        if self.name == "full":
            index = np.arange(index.shape[1])[None]
        elif self.name == "shared":
            index = index[:1]
        return np.repeat(index, self.sizes.batch // len(index), axis=0)

    @property
    def triples(self):
        return self.sizes.batch * self.sizes.iWin * self.sizes.oWin

    @property
    def block(self):
        """Elements of one block."""
        return self.sizes.iSize * self.sizes.oSize

    @property
    def gathered_bytes(self):
        """What a copy of each example's blocks takes."""
        return self.triples * self.block * self.dtype.itemsize

    @property
    def numbers(self):
        """The block of each triple, counted along the rows of W."""
        return self.inputIdx[:, :, None] * self.sizes.oBlocks + self.outputIdx[:, None, :]

    def used_blocks(self):
        return np.unique(self.numbers).size

    def work(self, quantity):
        """Multiply-adds, and bytes that must move at least once."""
        products = self.triples * self.block
        blocks = self.used_blocks() * self.block * self.dtype.itemsize
        rows = self.h.nbytes + self.o.nbytes
        if quantity == "training_step":
            return 2 * products, 3 * blocks + 2 * rows
        if quantity.startswith("outer"):
            return products, 2 * blocks + rows
        return products, blocks + rows

    def truth(self, quantity):
        """What one call gives, in float64; kept for the next contender."""
        if self._truth[0] != quantity:
            self._truth = quantity, self._compute(quantity)
        return self._truth[1]

    def _compute(self, quantity):
        o, W, h, y, b = (a.astype("float64") for a in (self.o, self.W, self.h, self.y, self.b))
        i, j = self.inputIdx, self.outputIdx
        if quantity == "forward":
            return [reference.gemv(o, W, h, i, j)]
        if quantity == "gradient_in_h":
            return [reference.gemv(h, W.transpose(1, 0, 3, 2), y, j, i)]
        if quantity == "outer_in_place":
            return [reference.outer(W, h, y, i, j, ALPHA)]
        if quantity == "outer_into_zeros":
            return [reference.outer(np.zeros_like(W), h, y, i, j, np.float64(1))]
        values = reference.gemv(b[j], W, h, i, j)
        g = 2 * values / values.size
        np.subtract.at(b, j, LEARNING_RATE * g)
        return [reference.outer(W, h, g, i, j, -LEARNING_RATE, inplace=True), b]

    def check(self, contender, quantity, values):
        """Raise if `values` differ from the truth by more than rounding allows."""
        s = self.sizes
        terms = max(s.iWin * s.iSize, s.oWin * s.oSize, s.batch)
        for got, want in zip(values, self.truth(quantity), strict=True):
            allowed = 4 * terms * np.finfo(self.dtype).eps * np.abs(want).max()
            error = np.abs(got - want).max()
            if not error <= allowed:
                raise AssertionError(
                    f"{contender}, {quantity} of {self.name}: off by {error:.2g}, "
                    f"rounding allows {allowed:.2g}"
                )
