"""How a block is cut: its columns into panels, its depth into chunks, rows into tiles."""

from collections import namedtuple

from llvmlite import ir
from numba.core.types import NamedUniTuple, UniTuple, int64
from numba.extending import intrinsic

from blocksparse_ops.kernels.numba.compile import kernel
from blocksparse_ops.kernels.numba.records import scalar_of
from blocksparse_ops.kernels.numba.vector import MANY_REGISTERS, WORD, bytes_of, full_lanes, word

# Of 32 vector registers, 6 x 4 accumulators leave enough for a row of the right operand and a
# broadcast scalar; of 16, 6 x 2 do.
TILE_VECTORS = 4 if MANY_REGISTERS else 2
TILE_ROWS = 6

# Depth between two calls of issue_prefetch.
STRIP_DEPTH = 8

# The largest depth of a chunk, whose sums are added to the output before the next chunk's.
MOST_DEPTH = 256
LEAST_DEPTH = 32

# A packed panel stays in L1: so many rows of the widest, or more of a narrower one.
PACKED_ROWS = MOST_DEPTH // 4

# A chunk of all columns of a wide block and the next one, which is being prefetched, fit into L2
# together.
L2_BYTES = 256 * 1024

# The vectors of a panel, the last of which may overlap those before it, so that there are no
# remainder columns; the most rows of a tile; and the least columns that it is taken for.
Shape = namedtuple("Shape", "lanes vectors is_full rows least_columns")

NARROW = (Shape(1, 3, False, 4, 1), Shape(4, 2, False, 4, 4), Shape(8, 2, False, 4, 8))

# What is packed for a panel of a single column.
NARROWEST = NARROW[0].lanes * NARROW[0].vectors

MOST_SHAPES = len(NARROW) + TILE_VECTORS


def shapes(scalar):
    """The shapes of panels, from the narrowest: for fewer columns than a vector has, and full.

    8 x 3 accumulators are as many as 6 x 4. Narrow panels gain little from more than 4 rows.
    """
    lanes = full_lanes(scalar)
    full = [
        Shape(lanes, n, True, TILE_ROWS + 2 * (n == 3), (n - 1) * lanes + 1 if n > 1 else lanes)
        for n in range(1, TILE_VECTORS + 1)
    ]
    return [shape for shape in NARROW if shape.lanes < lanes] + full


def constant(value_of):
    """A compiled function of a scalar, or of a record, that is a constant of the scalar's type."""

    @intrinsic
    def function(typing_context, like):
        def generate(context, builder, signature, arguments):
            return word(value_of(scalar_of(like)))

        return int64(like), generate

    return function


size_of = constant(bytes_of)
lanes_of = constant(full_lanes)


@intrinsic
def shape_for(typing_context, columns, like):
    """The position in `shapes` of what a panel of so many columns has, its width and tile rows."""
    result = UniTuple(int64, 3)

    def generate(context, builder, signature, arguments):
        columns, _ = arguments
        values = [ir.Constant(WORD, 0)] * 3
        for position, shape in enumerate(shapes(scalar_of(like))):
            wide_enough = builder.icmp_signed(">=", columns, word(shape.least_columns))
            choices = position, shape.lanes * shape.vectors, shape.rows
            values = [
                builder.select(wide_enough, word(choice), value)
                for choice, value in zip(choices, values, strict=True)
            ]
        return context.make_tuple(builder, result, values)

    return result(int64, like), generate


# Columns [first, first + columns) of a block. What is packed for it has `width` columns.
Panel = namedtuple("Panel", "shape first columns width rows")

# Columns cut into panels of `vectors` vectors or, from number `shorter` on, of one more. They are
# full if there are columns enough for one.
Panels = namedtuple("Panels", "columns count vectors shorter")
PANELS = NamedUniTuple(int64, 4, Panels)


@intrinsic
def ceil_div(typing_context, a, b):
    """a / b rounded up, of a >= 0 and b > 0."""

    def generate(context, builder, signature, arguments):
        a, b = arguments
        return builder.udiv(builder.sub(builder.add(a, b), word(1)), b)

    return int64(int64, int64), generate


@kernel
def cut_columns(columns, like):
    vectors = ceil_div(columns, lanes_of(like))
    count = ceil_div(vectors, TILE_VECTORS)
    of_each = vectors // max(count, 1)
    return Panels(columns, count, of_each, count * (of_each + 1) - vectors)


@kernel
def panel_start(panels, number, like):
    """The first column of a panel; for the number of panels, the number of columns.

    The last panel is not smaller than others: of several, each has a whole vector for the last one
    to overlap.
    """
    vectors = number * panels.vectors + max(number - panels.shorter, 0)
    return min(vectors * lanes_of(like), panels.columns)


@kernel
def panel_of(panels, number, like):
    """A panel by its number."""
    first = panel_start(panels, number, like)
    columns = panel_start(panels, number + 1, like) - first
    shape, width, rows = shape_for(columns, like)
    return Panel(shape, first, columns, width, rows)


@kernel
def packed_bytes(like):
    """The room for a packed panel."""
    return PACKED_ROWS * TILE_VECTORS * lanes_of(like) * size_of(like)


@kernel
def chunk_depth(columns, like):
    """The depth that is summed at once, for a block of this many columns."""
    some_columns = max(columns, 1)
    lanes = lanes_of(like)
    width = max(NARROWEST, min(ceil_div(some_columns, lanes), TILE_VECTORS) * lanes)
    in_l2 = L2_BYTES // size_of(like) // some_columns
    depth = min(packed_bytes(like) // size_of(like) // width, in_l2)
    return min(max(depth // STRIP_DEPTH * STRIP_DEPTH, LEAST_DEPTH), MOST_DEPTH)
