"""Prefetches rows of memory into L2, a few cache lines at a time between the products.

A contiguous region is prefetched in quarters at once: the hardware prefetcher follows each as a
stream and runs ahead of it. Of rows with gaps, four lines are prefetched at once, a tile's row.
"""

from collections import namedtuple

from blocksparse_ops.kernels.numba.compile import kernel
from blocksparse_ops.kernels.numba.panel import ceil_div
from blocksparse_ops.kernels.numba.records import Record
from blocksparse_ops.kernels.numba.vector import word

LINE = 64
STREAMS = 4

# Rows of so many bytes, a step apart.
Region = namedtuple("Region", "start rows bytes step")

NOTHING = Region(0, 0, 0, 0)

# What is still to be prefetched: the current row and how many are left, their bytes and step; how
# far apart streams are, how far each advances in a round; where in the row the next round starts,
# and the rounds of a call of issue_prefetch.
PREFETCH = Record("Prefetch", "row rows bytes step stream_step round_step at rounds")


@kernel
def spread_prefetch(prefetch, region, calls):
    """Spread a region over so many calls of issue_prefetch."""
    prefetch.row, prefetch.step, prefetch.at = region.start, region.step, 0
    if region.step == region.bytes or region.rows == 1:
        row_bytes = ceil_div(region.rows * region.bytes, STREAMS)
        prefetch.rows, prefetch.bytes = min(region.rows, 1), row_bytes
        prefetch.stream_step, prefetch.round_step = row_bytes, LINE
        rounds = ceil_div(row_bytes, LINE)
    else:
        prefetch.rows, prefetch.bytes = region.rows, region.bytes
        prefetch.stream_step, prefetch.round_step = LINE, STREAMS * LINE
        rounds = region.rows * ceil_div(region.bytes, STREAMS * LINE)
    # Most often it is one or none, and needs no division.
    prefetch.rounds = min(rounds, 1) if rounds <= calls else ceil_div(rounds, max(calls, 1))


def issue_prefetch(code, prefetch):
    """Write the code that prefetches the next few lines."""
    builder = code.builder
    value = {field: PREFETCH.load(code, prefetch, field) for field in PREFETCH.fields}

    def some_left(row, rows, at, rounds):
        return builder.and_(*(builder.icmp_signed(">", n, word(0)) for n in (rows, rounds)))

    def issue_round(row, rows, at, rounds):
        line = builder.add(row, at)
        for _ in range(STREAMS):
            code.prefetch(line, write=0, locality=2)
            line = builder.add(line, value["stream_step"])
        at = builder.add(at, value["round_step"])
        over = builder.icmp_signed(">=", at, value["bytes"])
        return [
            builder.select(over, builder.add(row, value["step"]), row),
            builder.select(over, builder.sub(rows, word(1)), rows),
            builder.select(over, word(0), at),
            builder.sub(rounds, word(1)),
        ]

    changing = ("row", "rows", "at")
    state = [value[field] for field in (*changing, "rounds")]
    *state, _ = code.while_loop(state, some_left, issue_round)
    for field, new in zip(changing, state, strict=True):
        PREFETCH.store(code, prefetch, field, new)
