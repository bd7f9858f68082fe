"""Rows of memory that are needed next, asked for a few lines at a time beside the products.

Rows without a gap are one long row, of which all quarters are asked for side by side: the machine's
own fetching follows each place that is read on and on, and so brings more.
"""

from collections import namedtuple

from blocksparse_ops.kernels.numba.compile import kernel
from blocksparse_ops.kernels.numba.memory import set_word
from blocksparse_ops.kernels.numba.panel import ceil_div
from blocksparse_ops.kernels.numba.vector import WORD, word

LINE = 64
PLACES = 4  # a tile's row, if rows have gaps

# Rows of so many bytes, a step apart.
Region = namedtuple("Region", "start rows bytes step")

NOTHING = Region(0, 0, 0, 0)

# A record of what is still to be asked for, a word each: the row that is being asked for, how many
# are left, how far apart places are, how far it goes on at each look, and where in the row it is.
FIELDS = ("row", "rows", "bytes", "step", "apart", "advance", "at", "looks")
RECORD_BYTES = 8 * len(FIELDS)


@kernel
def start_fetching(record, region, times):
    """Make a record of a region, of which all is asked for in `times` calls of fetch_some."""
    if region.step == region.bytes or region.rows == 1:
        row_bytes = apart = ceil_div(region.rows * region.bytes, PLACES)
        rows, advance, looks = min(region.rows, 1), LINE, ceil_div(row_bytes, LINE)
    else:
        row_bytes, apart, rows, advance = region.bytes, LINE, region.rows, PLACES * LINE
        looks = rows * ceil_div(row_bytes, PLACES * LINE)
    # Few need no division.
    looks = min(looks, 1) if looks <= times else ceil_div(looks, max(times, 1))
    words = (region.start, rows, row_bytes, region.step, apart, advance, 0, looks)
    for position in range(len(words)):
        set_word(record, position, words[position])


def fetch_some(code, record):
    """Write the code that asks for the next few lines of a record."""
    builder = code.builder
    place = {name: builder.add(record, word(8 * k)) for k, name in enumerate(FIELDS)}
    value = {name: code.load(place[name], WORD, align=8) for name in FIELDS}

    def some_left(row, rows, at, looks):
        return builder.and_(*(builder.icmp_signed(">", n, word(0)) for n in (rows, looks)))

    def look(row, rows, at, looks):
        here = builder.add(row, at)
        for _ in range(PLACES):
            code.prefetch(here, write=0, locality=2)
            here = builder.add(here, value["apart"])
        at = builder.add(at, value["advance"])
        over = builder.icmp_signed(">=", at, value["bytes"])
        return [
            builder.select(over, builder.add(row, value["step"]), row),
            builder.select(over, builder.sub(rows, word(1)), rows),
            builder.select(over, word(0), at),
            builder.sub(looks, word(1)),
        ]

    changing = ("row", "rows", "at")
    state = [value[name] for name in (*changing, "looks")]
    *state, _ = code.while_loop(state, some_left, look)
    for name, new in zip(changing, state, strict=True):
        code.store(new, place[name], align=8)
