"""Rows of memory that are needed next, asked for a few lines at a time beside the products."""

from collections import namedtuple

from blocksparse_ops.kernels.numba.arrays import store
from blocksparse_ops.kernels.numba.compile import kernel
from blocksparse_ops.kernels.numba.panel import ceil_div
from blocksparse_ops.kernels.numba.vector import WORD, word

LINE = 64

# Rows of so many bytes, a step apart.
Region = namedtuple("Region", "start rows bytes step")

NOTHING = Region(0, 0, 0, 0)

# Where a record of what is still to be asked for has what, in bytes.
ROW, ROWS, ROW_BYTES, STEP, AT, LINES = range(0, 48, 8)
RECORD_BYTES = 48


@kernel
def start_fetching(record, region, times):
    """Make a record of a region, of which all is asked for in `times` calls of fetch_some."""
    rows, row_bytes = region.rows, region.bytes
    if region.step == row_bytes:  # rows without a gap are one long row
        rows, row_bytes = min(rows, 1), rows * row_bytes
    store(record + ROW, region.start)
    store(record + ROWS, rows)
    store(record + ROW_BYTES, row_bytes)
    store(record + STEP, region.step)
    store(record + AT, 0)
    store(record + LINES, ceil_div(rows * ceil_div(row_bytes, LINE), max(times, 1)))


def fetch_some(code, record):
    """Write the code that asks for the next few lines of a record."""
    builder = code.builder

    def field(name):
        return builder.add(record, word(name))

    row_bytes, step, lines = (code.load(field(name), WORD, 8) for name in (ROW_BYTES, STEP, LINES))
    state = [code.load(field(name), WORD, 8) for name in (ROW, ROWS, AT)]

    def some_left(row, rows, at, lines):
        return builder.and_(*(builder.icmp_signed(">", n, word(0)) for n in (rows, lines)))

    def fetch(row, rows, at, lines):
        code.prefetch(builder.add(row, at), write=0, locality=2)
        at = builder.add(at, word(LINE))
        over = builder.icmp_signed(">=", at, row_bytes)
        return [
            builder.select(over, builder.add(row, step), row),
            builder.select(over, builder.sub(rows, word(1)), rows),
            builder.select(over, word(0), at),
            builder.sub(lines, word(1)),
        ]

    *state, _ = code.while_loop([*state, lines], some_left, fetch)
    for name, value in zip((ROW, ROWS, AT), state, strict=True):
        code.store(value, field(name), 8)
