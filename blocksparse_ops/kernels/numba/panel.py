"""How a block is cut: its columns into panels, its depth into chunks, rows into tiles."""

from collections import namedtuple

from numba.core.types import NamedUniTuple, int64
from numba.extending import intrinsic

from blocksparse_ops.kernels.numba.compile import kernel
from blocksparse_ops.kernels.numba.vector import (
    MANY_REGISTERS,
    bytes_of,
    full_lanes,
    word,
)

# Six rows by four vectors, in a file of 32 vector registers, leave some for a row of the right and
# a scalar; in a file of 16, six rows by two do.
TILE_VECTORS = 4 if MANY_REGISTERS else 2
TILE_ROWS = 6

# Products between two looks at what to fetch next.
STRIP_DEPTH = 8

# Sums are taken over at most this many products before they are added to the output: so many rows
# of a panel stay in the cache next to the core.
MOST_DEPTH = 256
LEAST_DEPTH = 32

# All rows of a chunk of a wide block, and of the next one, share the second cache.
CACHED_BYTES = 256 * 1024

# Vectors of a panel, the last of which may overlap those before it, so that no column is left over,
# and the most rows of a tile: what the registers hold, or less where there is little to gain.
Kind = namedtuple("Kind", "lanes vectors is_full rows")

MOST_TILE_ROWS = TILE_ROWS + 2


def kinds(scalar):
    """The kinds of panels: of full vectors, by their number, and for fewer columns than one has."""
    lanes = full_lanes(scalar)
    full = [
        Kind(lanes, vectors, True, MOST_TILE_ROWS if vectors == 3 else TILE_ROWS)
        for vectors in range(1, TILE_VECTORS + 1)
    ]
    narrow = [Kind(1, 3, False, 4), Kind(4, 2, False, 4), Kind(8, 2, False, 4)]
    return full + [kind for kind in narrow if kind.lanes < lanes]


def constant(value_of):
    """A compiled function of a scalar that is a constant of its type."""

    @intrinsic
    def function(typing_context, scalar):
        def generate(context, builder, signature, arguments):
            return word(value_of(scalar))

        return int64(scalar), generate

    return function


size_of = constant(bytes_of)
lanes_of = constant(full_lanes)

# Columns [first, first + columns) of a block.
Panel = namedtuple("Panel", "kind first columns width rows")

# Columns cut into panels of `vectors` vectors or, from number `shorter` on, of one more. They are
# full if there are columns enough for one.
Panels = namedtuple("Panels", "columns count vectors shorter")
PANELS = NamedUniTuple(int64, 4, Panels)


@kernel
def ceil_div(a, b):
    return (a + b - 1) // b


@kernel
def cut_columns(columns, scale):
    vectors = ceil_div(columns, lanes_of(scale))
    count = ceil_div(vectors, TILE_VECTORS)
    of_each = vectors // max(count, 1)
    return Panels(columns, count, of_each, count * (of_each + 1) - vectors)


@kernel
def panel_start(panels, number, scale):
    """The first column of a panel; for the number of panels, the number of columns.

    The last panel is not smaller than others: where there are several, it has a vector that the
    last may overlap.
    """
    vectors = number * panels.vectors + max(number - panels.shorter, 0)
    return min(vectors * lanes_of(scale), panels.columns)


@kernel
def panel_of(panels, number, scale):
    """A panel by its number; its kind is a position in `kinds`, and the rest as it is there."""
    lanes = lanes_of(scale)
    first = panel_start(panels, number, scale)
    columns = panel_start(panels, number + 1, scale) - first
    if columns >= lanes:
        vectors = ceil_div(columns, lanes)
        rows = MOST_TILE_ROWS if vectors == 3 else TILE_ROWS
        return Panel(vectors - 1, first, columns, vectors * lanes, rows)
    if columns >= 8:
        return Panel(TILE_VECTORS + 2, first, columns, 16, 4)
    if columns >= 4:
        return Panel(TILE_VECTORS + 1, first, columns, 8, 4)
    return Panel(TILE_VECTORS, first, columns, 3, 4)


@kernel
def scratch_elements(lanes):
    """A widest panel of a quarter of the most depth, or a narrower one of more."""
    return MOST_DEPTH // 4 * TILE_VECTORS * lanes


@kernel
def chunk_depth(columns, scale):
    """The depth that is summed at once, for a block of this many columns."""
    lanes = lanes_of(scale)
    some_columns = max(columns, 1)
    width = max(3, min(ceil_div(some_columns, lanes), TILE_VECTORS) * lanes)
    cached = CACHED_BYTES // size_of(scale) // some_columns
    depth = min(scratch_elements(lanes) // width, cached) // STRIP_DEPTH * STRIP_DEPTH
    return min(max(depth, LEAST_DEPTH), MOST_DEPTH)
