"""The code of the direct path: rows of the output one after the other, for one shape of blocks."""

from collections import namedtuple
from itertools import product

from llvmlite import ir
from numba.core.types import void
from numba.extending import intrinsic

from blocksparse_ops.kernels.numba.arrays import array_type
from blocksparse_ops.kernels.numba.places import Places, is_block
from blocksparse_ops.kernels.numba.records import SCALAR, Record
from blocksparse_ops.kernels.numba.sums import ColumnSums, RowSums, add_lanes, select_from
from blocksparse_ops.kernels.numba.vector import (
    WORD,
    WORD_BYTES,
    Code,
    bytes_of,
    llvm_scalar,
    word,
)

LINE = 64

YES = ir.Constant(ir.IntType(1), 1)

# What all threads work on: the blocks, what stands at the input window and at the output window,
# tables of the indices counted from the start, and whether these may be padded. `ahead` is a number
# of rows, or 0; `initial` is the address of a vector of initial values, or 0; and `places` are
# words for Places, so many for each thread.
DIRECT = Record(
    "Direct",
    "input output is_padded threads ahead initial places words",
    blocks=array_type(4),
    left=array_type(3),
    right=array_type(3),
    scale=SCALAR,
)


class Rows:
    """Code that works on some rows n * outputs + w of the output window, one after the other.

    If `shape.single`, each window has one place: loops over them take longer than small products
    do. So do those over the vectors of a block, if one holds all columns: `shape.whole`. If
    `shape.padded`, places of either window may be.
    """

    def __init__(self, builder, scalar, shape, record, thread):
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
        self.padded = shape.padded
        places, words = (DIRECT.load(self.code, record, field) for field in ("places", "words"))
        own = self.code.offset(places, builder.mul(thread, words), word(WORD_BYTES))
        self.places = Places(self.code, self.inputs, own)

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
        if self.padded:
            start.append(YES)

        def work(row, values):
            w, left, right, input_blocks, *is_empty = values
            self._prefetch(row, last)
            j = self._index(self.output, row)
            if self.padded:
                enters = builder.or_(
                    *(builder.icmp_signed("==", *x) for x in ((w, word(0)), (row, first)))
                )
                is_empty = code.when(enters, is_empty, lambda _: [self.places.enter(input_blocks)])
                adds = builder.and_(is_block(builder, j), builder.not_(*is_empty))
                with builder.if_then(adds, likely=True):
                    self._add(left, right, input_blocks, j)
            else:
                self._add(left, right, input_blocks, j)
            w = builder.add(w, word(1))
            wraps = builder.icmp_signed("==", w, self.outputs)
            steps = left_step, wrap_step, builder.mul(self.inputs, word(WORD_BYTES))
            if self.single:
                new = (builder.add(*pair) for pair in zip(values[1:4], steps, strict=True))
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
                *is_empty,
            ]

        code.for_loop(first, last, word(1), start, work)

    def _index(self, table, at):
        return self.code.load(self.code.offset(table, at, word(WORD_BYTES)), WORD, WORD_BYTES)

    def _for_each_input(self, input_blocks, values, body):
        """Values turned into body(v, block, values) for each place of an input window."""

        def use_place(v, values):
            return body(v, self._index(input_blocks, v), values)

        if self.single:
            return use_place(word(0), values)
        if self.padded:
            return self.places.for_each(values, use_place)
        return self.code.for_loop(word(0), self.inputs, word(1), values, use_place)[1]

    def _block(self, i, j):
        data, _, (i_step, j_step, *_) = self.blocks
        return self.code.offset(self.code.offset(data, i, i_step), j, j_step)

    def _some_block(self, number):
        """The number of a block; of what is padded another's."""
        return self.builder.select(is_block(self.builder, number), number, word(0))

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
            j = self._some_block(self._index(self.output, later))
            is_row_major = builder.icmp_signed("==", column_step, word(self.size))
            lines = builder.select(is_row_major, rows, columns)
            length = builder.mul(builder.select(is_row_major, columns, rows), word(self.size))
            step = builder.select(is_row_major, row_step, column_step)

            def prefetch_block(v, _):
                block = self._block(self._some_block(self._index(input_blocks, v)), j)

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

    def __init__(self, builder, scalar, shape, record, thread):
        super().__init__(builder, scalar, shape, record, thread)
        sums = ColumnSums if shape.by_columns else RowSums
        self.sums = sums(self.code, scalar, shape.chains, shape.lanes)

    def _add(self, left, right, input_blocks, j):
        code = self.code
        _, (_, _, depth, columns), (*_, row_step, column_step) = self.blocks
        _, _, (_, place_step, left_step) = self.left
        out_step = self.right[2][2]
        step = column_step if self.by_columns else row_step

        def add_vector(column, overlap):
            def accumulate(v, i, sums):
                block = code.offset(self._block(i, j), column, column_step)
                row = code.offset(left, v, place_step)
                return self.sums.accumulate(sums, row, left_step, block, step, depth)

            sums = self._for_each_input(input_blocks, self.sums.start(), accumulate)
            to = code.offset(right, column, out_step)
            total = self.sums.total(sums)
            add_lanes(code, total, overlap, self.initial, to, out_step, self.size)

        self._for_each_vector(columns, add_vector)


class OuterRows(Rows):
    """blocks[i, j] += scale * outer(left[n, v], right[n, w]), for some of the blocks."""

    def __init__(self, builder, scalar, shape, record, thread, first_block, last_block):
        super().__init__(builder, scalar, shape, record, thread)
        self.first_block, self.last_block = first_block, last_block
        self.vector = ir.VectorType(self.scalar, self.lanes)
        self.scales = self.code.splat(self.scale, self.vector)

    def _add(self, left, right, input_blocks, j):
        builder, code = self.builder, self.code
        _, (_, oBlocks, *_), _ = self.blocks
        _, _, (_, place_step, left_step) = self.left

        def add_block(v, i, _):
            number = builder.add(builder.mul(i, oBlocks), j)
            is_mine = builder.and_(
                builder.icmp_signed(">=", number, self.first_block),
                builder.icmp_signed("<", number, self.last_block),
            )
            with builder.if_then(is_mine, likely=True):
                sides = (code.offset(left, v, place_step), left_step), (right, self.right[2][2])
                self._add_block(self._block(i, j), *(sides[::-1] if self.by_columns else sides))
            return []

        self._for_each_input(input_blocks, [], add_block)

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
# the columns of a vector, whether the loops over windows and over vectors are left out, and whether
# windows may be padded.
Shape = namedtuple("Shape", "by_columns chains lanes single whole padded")

POWERS = 5  # of two: 1 to 16
LOOPS = ((False, False, False), (True, False, False), (True, True, False), (False, False, True))
PADDED = LOOPS.index((False, False, True))


def shapes():
    """All, those that a processor or a scalar does not have as well."""
    powers = [1 << k for k in range(POWERS)]
    return [
        Shape(*shape, *loops) for *shape, loops in product((False, True), powers, powers, LOOPS)
    ]


def runner(write):
    """The function that runs the code which write(builder, scalar, shape, ...) writes."""

    @intrinsic(prefer_literal=True)
    def run(typing_context, position, record, thread, first, last):
        shape = shapes()[position.literal_value]

        def generate(context, builder, signature, values):
            write(builder, record.scalar, shape, *values[1:])
            return context.get_dummy_value()

        return void(position, record, thread, first, last), generate

    return run


@runner
def add_gemv(builder, scalar, shape, record, thread, first, last):
    GemvRows(builder, scalar, shape, record, thread).write(first, last)


@runner
def add_outer(builder, scalar, shape, record, thread, first, last):
    rows = OuterRows(builder, scalar, shape, record, thread, first, last)
    (batch, *_), (_, outputs, _) = rows.left[1], rows.right[1]
    rows.write(word(0), builder.mul(batch, outputs))
