"""What the direct path is compiled for: a function for each shape of blocks and layout."""

from collections import namedtuple
from itertools import product

from blocksparse_ops.kernels.numba.compile import kernel

# Which loops are left out, and whether windows may be padded; see Rows and GemvRows.
Loops = namedtuple(
    "Loops", "one_input one_output one_index vectors together padded", defaults=[0] * 6
)
VECTORS = (0, 1, 2, 4)  # 0 if there is a loop over them
LOOPS = (
    Loops(),
    Loops(padded=True),
    *(Loops(one_input, True, True, vectors=1, together=True) for one_input in (False, True)),
    *(
        Loops(*ones, vectors=vectors)
        for ones in ((True, True, False), (False, True, True), (True, True, True))
        for vectors in VECTORS
    ),
)
# Positions. Some are the first of two, by `one_input`, or of as many as there are of VECTORS.
OVER_WINDOWS, OVER_PADDED, TOGETHER = range(3)
TWO_INDICES = TOGETHER + 2
ONE_INDEX = TWO_INDICES + len(VECTORS)

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
