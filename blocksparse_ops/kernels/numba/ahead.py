"""Prefetching where triples are worked on as the examples stand: the blocks of rows to come."""

from numba.core.types import int64, void

from blocksparse_ops.kernels.numba.arrays import prefetch_line
from blocksparse_ops.kernels.numba.compile import Unit, call_address, kernel
from blocksparse_ops.kernels.numba.memory import word_at
from blocksparse_ops.kernels.numba.panel import ceil_div, size_of
from blocksparse_ops.kernels.numba.prefetch import LINE
from blocksparse_ops.kernels.numba.records import Record
from blocksparse_ops.kernels.numba.vector import word

# Blocks of so many bytes are prefetched, if all together have more than a cache: the processor
# looks some smaller ones ahead by itself.
LEAST_BLOCK, CACHE_BYTES = 1024, 8 * 1024 * 1024

# So many bytes of blocks, or triples, are prefetched ahead.
AHEAD_BYTES, LEAST_AHEAD, MOST_AHEAD = 16 * 1024, 4, 32

# How many rows ahead, or 0; what prefetches a row; the counted indices, and how many of them there
# are for an example; and where blocks lie: so many lines of so many bytes, a step apart.
AHEAD = Record(
    "Ahead",
    "rows function input output inputs outputs data input_step output_step lines bytes step",
)
ahead_at = AHEAD.at


def prefetch_row(ahead, row):
    """The blocks of row n * outputs + w; of what is padded another's."""
    a = ahead_at(ahead, 0, 0)
    input_blocks = row // a.outputs * a.inputs
    of_output = a.data + max(word_at(a.output, row), 0) * a.output_step
    for v in range(a.inputs):
        line = of_output + max(word_at(a.input, input_blocks + v), 0) * a.input_step
        for _ in range(a.lines):
            for byte in range(0, a.bytes, LINE):
                prefetch_line(line + byte)
            line += a.step


PREFETCH_SIGNATURE = void(int64, int64)
# By itself: in the loop over rows it would take the registers.
PREFETCH_ROW = Unit(prefetch_row, lambda _: PREFETCH_SIGNATURE)
ready_prefetch_row, address_of_prefetch_row = PREFETCH_ROW.ready, PREFETCH_ROW.address


@kernel
def set_ahead(p):
    """What is prefetched of the blocks that a call of direct.py reads."""
    ahead, blocks, inputs = p.ahead, p.blocks, p.left.shape[1]
    size = size_of(p)
    block_bytes = blocks.shape[2] * blocks.shape[3] * size
    # In floating point: the product may overflow.
    of_all = float(blocks.shape[0]) * float(blocks.shape[1]) * float(block_bytes)
    ahead.rows = 0
    if block_bytes < LEAST_BLOCK or of_all <= CACHE_BYTES or inputs == 0:
        return
    triples = min(max(AHEAD_BYTES // block_bytes, LEAST_AHEAD), MOST_AHEAD)
    ahead.rows = ceil_div(triples, inputs)
    ready_prefetch_row(0, 0)
    ahead.function = address_of_prefetch_row(0, 0)
    ahead.input, ahead.output = p.input, p.output
    ahead.inputs, ahead.outputs = inputs, p.right.shape[1]
    ahead.data, (ahead.input_step, ahead.output_step) = blocks.data, blocks.strides[:2]
    rows, columns = 2, 3
    if blocks.strides[3] != size:
        rows, columns = columns, rows
    ahead.lines, ahead.step = blocks.shape[rows], blocks.strides[rows]
    ahead.bytes = blocks.shape[columns] * size
    if ahead.step == ahead.bytes:  # a cache line may hold several
        ahead.lines, ahead.bytes = 1, block_bytes


class Ahead:
    """Code that prefetches, while rows up to number `end` are worked on."""

    def __init__(self, context, code, ahead, end):
        self.context, self.code, self.builder, self.ahead = context, code, code.builder, ahead
        self.rows = AHEAD.load(code, ahead, "rows")
        is_wanted = self.builder.icmp_signed("!=", self.rows, word(0))
        self.end = self.builder.select(is_wanted, self.builder.sub(end, self.rows), word(0))

    def prefetch_from(self, row, count=1):
        """The blocks of rows to come, for so many of them."""
        builder = self.builder
        last = builder.add(row, word(count - 1))
        with builder.if_then(builder.icmp_signed("<", last, self.end), likely=False):
            function = AHEAD.load(self.code, self.ahead, "function")
            for k in range(count):
                arguments = [self.ahead, builder.add(row, builder.add(self.rows, word(k)))]
                call_address(self.context, builder, PREFETCH_SIGNATURE, function, arguments)
