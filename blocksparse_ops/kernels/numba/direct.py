"""Both ops triple after triple, as the examples stand: of small blocks a plan takes longer than the
products."""

from collections import namedtuple
from itertools import product

import numpy as np
from llvmlite import ir
from numba import prange
from numba.core.types import int64, void
from numba.extending import intrinsic

from blocksparse_ops.kernels.numba.arrays import (
    INDEX_ARRAY,
    array_type,
    keep_alive,
    load,
    store,
)
from blocksparse_ops.kernels.numba.check import count_from_start
from blocksparse_ops.kernels.numba.choose import threads_for
from blocksparse_ops.kernels.numba.compile import Unit, kernel
from blocksparse_ops.kernels.numba.memory import allocate_tables, take
from blocksparse_ops.kernels.numba.panel import constant, lanes_of, size_of
from blocksparse_ops.kernels.numba.records import SCALAR, Record, address_of_record
from blocksparse_ops.kernels.numba.split import share_of
from blocksparse_ops.kernels.numba.sums import (
    ColumnSums,
    RowSums,
    add_lanes,
    most_chains,
    select_from,
)
from blocksparse_ops.kernels.numba.vector import (
    WORD,
    WORD_BYTES,
    Code,
    bytes_of,
    llvm_scalar,
    word,
)

# Blocks of so many bytes are prefetched, if all together have more than a cache: the processor
# looks some smaller ones ahead by itself.
LEAST_BLOCK, CACHE_BYTES = 1024, 8 * 1024 * 1024

# So many bytes of blocks, or triples, are prefetched ahead.
AHEAD_BYTES, LEAST_AHEAD, MOST_AHEAD = 16 * 1024, 4, 32

LINE = 64

# Columns that are summed at once where they are contiguous.
MOST_COLUMNS = 4

most_chains_of = constant(most_chains)

# What all threads work on: the blocks, what stands at the input window and at the output window,
# tables of the indices counted from the start. `ahead` is a number of rows, or 0; `initial` is the
# address of a vector of initial values, or 0.
DIRECT = Record(
    "Direct",
    "input output threads ahead initial",
    blocks=array_type(4),
    left=array_type(3),
    right=array_type(3),
    scale=SCALAR,
)
new_direct, direct_at = DIRECT.new, DIRECT.at


class Rows:
    """Code that works on some rows n * outputs + w of the output window, one after the other.

    If `shape.single`, each window has one place: loops over them take longer than small products
    do. So do those over the vectors of a block, if one holds all columns: `shape.whole`.
    """

    def __init__(self, builder, scalar, shape, record):
        self.code, self.builder = Code(builder), builder
        self.scalar, self.size = llvm_scalar(scalar), bytes_of(scalar)
        self.by_columns, self.lanes = shape.by_columns, shape.lanes
        self.single, self.whole = shape.single, shape.whole
        for field in ("input", "output", "ahead", "initial"):
            setattr(self, field, DIRECT.load(self.code, record, field))
        for field in ("blocks", "left", "right"):
            setattr(self, field, DIRECT.load_array(self.code, record, field))
        self.scale = DIRECT.load(self.code, record, "scale", self.scalar)
        self.inputs = word(1) if shape.single else self.left[1][1]
        self.outputs = word(1) if shape.single else self.right[1][1]

    def write(self, first, last):
        """All of rows `first` to `last`."""
        builder, code = self.builder, self.code
        left, _, (left_step, *_) = self.left
        right, _, (right_step, place_step, *_) = self.right
        others = builder.mul(builder.sub(self.outputs, word(1)), place_step)
        wrap_step = builder.sub(right_step, others)
        n = first if self.single else builder.sdiv(first, self.outputs)
        w = builder.sub(first, builder.mul(n, self.outputs))
        start = [
            w,
            code.offset(left, n, left_step),
            code.offset(code.offset(right, n, right_step), w, place_step),
            code.offset(self.input, builder.mul(n, self.inputs), word(WORD_BYTES)),
        ]

        def work(row, values):
            w, left, right, input_blocks = values
            self._prefetch(row, last)
            j = self._index(self.output, row)
            self._add(left, right, input_blocks, j)
            w = builder.add(w, word(1))
            wraps = builder.icmp_signed("==", w, self.outputs)
            steps = left_step, wrap_step, builder.mul(self.inputs, word(WORD_BYTES))
            if self.single:
                new = (builder.add(*pair) for pair in zip(values[1:], steps, strict=True))
                return [word(0), *new]
            left_by, right_by, input_by = (
                builder.select(wraps, step, other)
                for step, other in zip(steps, (word(0), place_step, word(0)), strict=True)
            )
            return [
                builder.select(wraps, word(0), w),
                builder.add(left, left_by),
                builder.add(right, right_by),
                builder.add(input_blocks, input_by),
            ]

        code.for_loop(first, last, word(1), start, work)

    def _index(self, table, at):
        return self.code.load(self.code.offset(table, at, word(WORD_BYTES)), WORD, WORD_BYTES)

    def _block(self, i, j):
        data, _, (i_step, j_step, *_) = self.blocks
        return self.code.offset(self.code.offset(data, i, i_step), j, j_step)

    def _prefetch(self, row, last):
        """The blocks of a row to come."""
        builder, code = self.builder, self.code
        later = builder.add(row, self.ahead)
        wanted = builder.and_(
            builder.icmp_signed("!=", self.ahead, word(0)), builder.icmp_signed("<", later, last)
        )
        with builder.if_then(wanted, likely=False):
            _, (_, _, rows, columns), (_, _, row_step, column_step) = self.blocks
            n = builder.sdiv(later, self.outputs)
            input_blocks = code.offset(self.input, builder.mul(n, self.inputs), word(WORD_BYTES))
            j = self._index(self.output, later)
            is_row_major = builder.icmp_signed("==", column_step, word(self.size))
            lines = builder.select(is_row_major, rows, columns)
            length = builder.mul(builder.select(is_row_major, columns, rows), word(self.size))
            step = builder.select(is_row_major, row_step, column_step)

            def prefetch_block(v, _):
                block = self._block(self._index(input_blocks, v), j)

                def prefetch_row(k, _):
                    line = code.offset(block, k, step)

                    def prefetch_line(at, _):
                        code.prefetch(builder.add(line, at), write=0, locality=3)
                        return []

                    code.for_loop(word(0), length, word(LINE), [], prefetch_line)
                    return []

                code.for_loop(word(0), lines, word(1), [], prefetch_row)
                return []

            code.for_loop(word(0), self.inputs, word(1), [], prefetch_block)

    def _for_each_vector(self, columns, use):
        """use(column, overlap) for each vector of columns; the last may overlap another."""
        if self.whole:
            use(word(0), word(0))
            return
        last = self.builder.sub(columns, word(self.lanes))

        def use_one(first, _):
            column = self.code.smaller(first, last)
            use(column, self.builder.sub(first, column))
            return []

        self.code.for_loop(word(0), columns, word(self.lanes), [], use_one)


class GemvRows(Rows):
    """out[n, w] += sum_v left[n, v] @ blocks[i, j], the output at the place of `right`."""

    def __init__(self, builder, scalar, shape, record):
        super().__init__(builder, scalar, shape, record)
        sums = ColumnSums if shape.by_columns else RowSums
        self.sums = sums(self.code, scalar, shape.chains, shape.lanes)

    def _add(self, left, right, input_blocks, j):
        code = self.code
        _, (_, _, depth, columns), (*_, row_step, column_step) = self.blocks
        _, _, (_, place_step, left_step) = self.left
        out_step = self.right[2][2]
        step = column_step if self.by_columns else row_step

        def add_vector(column, overlap):
            def accumulate(v, sums):
                block = self._block(self._index(input_blocks, v), j)
                block = code.offset(block, column, column_step)
                row = code.offset(left, v, place_step)
                return self.sums.accumulate(sums, row, left_step, block, step, depth)

            sums = self.sums.start()
            if self.single:
                sums = accumulate(word(0), sums)
            else:
                _, sums = code.for_loop(word(0), self.inputs, word(1), sums, accumulate)
            to = code.offset(right, column, out_step)
            total = self.sums.total(sums)
            add_lanes(code, total, overlap, self.initial, to, out_step, self.size)

        self._for_each_vector(columns, add_vector)


class OuterRows(Rows):
    """blocks[i, j] += scale * outer(left[n, v], right[n, w]), for some of the blocks."""

    def __init__(self, builder, scalar, shape, record, first_block, last_block):
        super().__init__(builder, scalar, shape, record)
        self.first_block, self.last_block = first_block, last_block
        self.vector = ir.VectorType(self.scalar, self.lanes)
        self.scales = self.code.splat(self.scale, self.vector)

    def _add(self, left, right, input_blocks, j):
        builder, code = self.builder, self.code
        _, (_, oBlocks, *_), _ = self.blocks
        _, _, (_, place_step, left_step) = self.left

        def add_block(v, _):
            i = self._index(input_blocks, v)
            number = builder.add(builder.mul(i, oBlocks), j)
            is_mine = builder.and_(
                builder.icmp_signed(">=", number, self.first_block),
                builder.icmp_signed("<", number, self.last_block),
            )
            with builder.if_then(is_mine, likely=True):
                sides = (code.offset(left, v, place_step), left_step), (right, self.right[2][2])
                self._add_block(self._block(i, j), *(sides[::-1] if self.by_columns else sides))
            return []

        if self.single:
            add_block(word(0), [])
        else:
            code.for_loop(word(0), self.inputs, word(1), [], add_block)

    def _add_block(self, block, left, right):
        """block[k][q] += scale * left[k] * right[q], of a block whose rows are contiguous."""
        _, (_, _, *sizes), (_, _, *steps) = self.blocks
        (rows, columns), (row_step, column_step) = (
            axes[::-1] if self.by_columns else axes for axes in (sizes, steps)
        )
        (left, left_step), (right, right_step) = left, right
        builder, code = self.builder, self.code

        def add_vector(column, overlap):
            factor = code.load(code.offset(right, column, right_step), self.vector, self.size)

            def add_row(k, _):
                to = code.offset(code.offset(block, k, row_step), column, column_step)
                one = code.load(code.offset(left, k, left_step), self.scalar, self.size)
                product = builder.fmul(code.splat(one, self.vector), factor)
                old = code.load(to, self.vector, self.size)
                total = builder.fadd(old, builder.fmul(self.scales, product))
                code.store(select_from(code, overlap, total, old), to, align=self.size)
                return []

            code.for_loop(word(0), rows, word(1), [], add_row)

        self._for_each_vector(columns, add_vector)


# What a function is compiled for: whether columns of blocks are contiguous, the chains of a sum,
# the columns of a vector, and whether the loops over windows and over vectors are left out.
Shape = namedtuple("Shape", "by_columns chains lanes single whole")

POWERS = 5  # of two: 1 to 16
LOOPS = ((False, False), (True, False), (True, True))


def shapes():
    """All, those that a processor or a scalar does not have as well."""
    powers = [1 << k for k in range(POWERS)]
    return [
        Shape(*shape, *loops) for *shape, loops in product((False, True), powers, powers, LOOPS)
    ]


@kernel
def position_of(p, by_columns, chains, lanes, columns):
    """Of a shape in `shapes`: powers of two are given by their exponents."""
    single = p.left.shape[1] == 1 and p.right.shape[1] == 1
    loops = single * (1 + (columns == 1 << lanes))
    return ((by_columns * POWERS + chains) * POWERS + lanes) * len(LOOPS) + loops


def runner(write):
    """The function that runs the code which write(builder, scalar, shape, ...) writes."""

    @intrinsic(prefer_literal=True)
    def run(typing_context, position, record, first, last):
        shape = shapes()[position.literal_value]

        def generate(context, builder, signature, values):
            write(builder, record.scalar, shape, *values[1:])
            return context.get_dummy_value()

        return void(position, record, first, last), generate

    return run


@runner
def add_gemv(builder, scalar, shape, record, first, last):
    GemvRows(builder, scalar, shape, record).write(first, last)


@runner
def add_outer(builder, scalar, shape, record, first, last):
    rows = OuterRows(builder, scalar, shape, record, first, last)
    (batch, *_), (_, outputs, _) = rows.left[1], rows.right[1]
    rows.write(word(0), builder.mul(batch, outputs))


def gemv_of(position):
    """The function for one shape. What is enclosed is part of a key on the disk: a number."""

    def work_direct_gemv(direct, first, last, scale):
        add_gemv(position, direct_at(direct, 0, scale), first, last)

    return work_direct_gemv


def outer_of(position):
    def work_direct_outer(direct, first, last, scale):
        add_outer(position, direct_at(direct, 0, scale), first, last)

    return work_direct_outer


@kernel
def power_up_to(most, size):
    """The exponent of the largest power of two that is neither above `most` nor above a size."""
    exponent = 0
    while 2 << exponent <= min(most, size):
        exponent += 1
    return exponent


@kernel
def set_direct(p, blocks, left, right, scale, most_threads):
    p.blocks, p.left, p.right, p.scale = blocks, left, right, scale
    inputs, outputs = left.shape[1], right.shape[1]
    elements = blocks.shape[2] * blocks.shape[3]
    p.threads = threads_for(left.shape[0] * inputs * outputs, elements, most_threads)
    size = elements * size_of(p)
    # In floating point: the product may overflow.
    of_all = float(blocks.shape[0]) * float(blocks.shape[1]) * float(size)
    p.ahead = 0
    if size >= LEAST_BLOCK and of_all > CACHE_BYTES and inputs > 0:
        triples = min(max(AHEAD_BYTES // size, LEAST_AHEAD), MOST_AHEAD)
        p.ahead = (triples + inputs - 1) // inputs


@kernel
def take_direct(p, memory):
    """All tables of a call."""
    batch = p.left.shape[0]
    p.input = take(memory, batch * p.left.shape[1])
    p.output = take(memory, batch * p.right.shape[1])
    p.initial = take(memory, lanes_of(p))


@kernel
def is_nothing(p):
    """Whether there is nothing to add."""
    triples = p.left.shape[0] * p.left.shape[1] * p.right.shape[1]
    return triples == 0 or p.blocks.shape[2] * p.blocks.shape[3] == 0


@kernel
def shape_of_gemv(p):
    """The position of the shape of a product in `shapes`."""
    _, _, depth, columns = p.blocks.shape
    _, _, row_step, column_step = p.blocks.strides
    size, lanes = size_of(p), lanes_of(p)
    chains = power_up_to(most_chains_of(p), depth)
    has_columns = row_step == size and p.left.strides[2] == size
    if has_columns and (columns == 1 or column_step != size):
        lanes = power_up_to(min(MOST_COLUMNS, lanes), columns)
        return position_of(p, 1, chains, lanes, columns)
    lanes = power_up_to(lanes, columns) if column_step == size else 0
    return position_of(p, 0, chains, lanes, columns)


@kernel
def shape_of_outer(p):
    """The position of the shape of an outer product in `shapes`."""
    _, _, rows, columns = p.blocks.shape
    _, _, row_step, column_step = p.blocks.strides
    size, right_step = size_of(p), p.right.strides[2]
    by_columns = row_step == size and (columns == 1 or column_step != size)
    if by_columns:
        columns, column_step, right_step = rows, row_step, p.left.strides[2]
    is_contiguous = column_step == size and right_step == size
    lanes = power_up_to(lanes_of(p), columns) if is_contiguous else 0
    return position_of(p, np.int64(by_columns), 0, lanes, columns)


@kernel
def writes_all(h, W):
    """Whether each element of the output is a sum of some products."""
    return h.shape[1] * W.shape[2] * W.shape[3] != 0


def run_direct_gemv(out, W, h, inputIdx, outputIdx, scale, start, most_threads):
    """Add to `out`; all has been checked.

    It holds the initial values or, where each element is written, `start` is where the value is
    from which all start.
    """
    p = new_direct(scale)
    set_direct(p, W, h, out, scale, most_threads)
    if is_nothing(p):
        return
    array = allocate_tables(p, take_direct)
    if start == 0:
        p.initial = 0
    else:
        for q in range(lanes_of(p)):
            store(p.initial + q * size_of(p), load(start, scale))
    p.input = count_from_start(inputIdx, W.shape[0], p.input)
    p.output = count_from_start(outputIdx, W.shape[1], p.output)
    shape, threads, direct = shape_of_gemv(p), p.threads, address_of_record(p)
    rows = out.shape[0] * out.shape[1]
    ready_gemv(scale, shape)
    if threads == 1:  # a prange would wake them all the same
        call_gemv(scale, shape, (direct, 0, rows, scale))
    else:
        for thread in prange(threads):
            share = share_of(rows, thread, threads)
            call_gemv(scale, shape, (direct, share.first, share.last, scale))
    keep_alive(array)


def run_direct_outer(out, x, y, xIdx, yIdx, alpha, start, most_threads):
    """Add to `out`, which holds the initial values; all has been checked."""
    p = new_direct(alpha)
    set_direct(p, out, x, y, alpha, most_threads)
    if is_nothing(p):
        return
    array = allocate_tables(p, take_direct)
    p.input = count_from_start(xIdx, out.shape[0], p.input)
    p.output = count_from_start(yIdx, out.shape[1], p.output)
    shape, threads, direct = shape_of_outer(p), p.threads, address_of_record(p)
    blocks = out.shape[0] * out.shape[1]
    ready_outer(alpha, shape)
    if threads == 1:  # a prange would wake them all the same
        call_outer(alpha, shape, (direct, 0, blocks, alpha))
    else:
        for thread in prange(threads):
            share = share_of(blocks, thread, threads)
            call_outer(alpha, shape, (direct, share.first, share.last, alpha))
    keep_alive(array)


WORK_GEMV, WORK_OUTER = (
    Unit(
        [function_of(position) for position in range(len(shapes()))],
        lambda scalar: void(int64, int64, int64, scalar),
    )
    for function_of in (gemv_of, outer_of)
)
ready_gemv, call_gemv = WORK_GEMV.ready, WORK_GEMV.call
ready_outer, call_outer = WORK_OUTER.ready, WORK_OUTER.call


def signature_of(*ndims):
    """Of a function of arrays, and of what is the same for both ops."""
    arrays = [array_type(ndim) for ndim in ndims]
    return lambda scalar: void(*arrays, INDEX_ARRAY, INDEX_ARRAY, scalar, int64, int64)


RUN_DIRECT_GEMV, RUN_DIRECT_GEMV_PARALLEL = (
    Unit(run_direct_gemv, signature_of(3, 4, 3), parallel=parallel) for parallel in (False, True)
)
RUN_DIRECT_OUTER, RUN_DIRECT_OUTER_PARALLEL = (
    Unit(run_direct_outer, signature_of(4, 3, 3), parallel=parallel) for parallel in (False, True)
)
