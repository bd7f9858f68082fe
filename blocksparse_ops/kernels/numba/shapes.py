"""What the direct path is compiled for: a function for each shape of blocks and layout."""

from collections import namedtuple
from itertools import product

from blocksparse_ops.kernels.numba.compile import kernel

# Which loops are left out, and whether windows may be padded; see Rows and GemvRows.
Loops = namedtuple("Loops", "single one_index vectors together padded", defaults=[0] * 5)
VECTORS = (0, 1, 2, 4)  # 0 if there is a loop over them
LOOPS = (
    Loops(),
    Loops(padded=True),
    Loops(single=True, one_index=True, vectors=1, together=True),
    *(
        Loops(single=True, one_index=one_index, vectors=vectors)
        for one_index in (False, True)
        for vectors in VECTORS
    ),
)
# Positions: those of single ones are the first of as many as there are of VECTORS.
OVER_WINDOWS, OVER_PADDED, TOGETHER, SINGLE = range(4)
ONE_INDEX = SINGLE + len(VECTORS)

# What a function is compiled for: whether columns of blocks are contiguous, the chains of a sum,
# the columns of a vector, and the loops.
Shape = namedtuple("Shape", ("by_columns", "chains", "lanes", *Loops._fields))

POWERS = 5  # of two: 1 to 16


def shapes():
    """All, those that a processor or a scalar does not have as well."""
    powers = [1 << k for k in range(POWERS)]
    return [
        Shape(*shape, *loops) for *shape, loops in product((False, True), powers, powers, LOOPS)
    ]


@kernel
def position_of(by_columns, chains, lanes, loops):
    """Of a shape in `shapes`: powers of two are given by their exponents."""
    return ((by_columns * POWERS + chains) * POWERS + lanes) * len(LOOPS) + loops
