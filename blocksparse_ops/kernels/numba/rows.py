"""The code of the direct path: rows of the output one after the other, for one shape of blocks."""

from collections import namedtuple
from functools import partial
from itertools import product

from llvmlite import ir
from numba.core.types import void
from numba.extending import intrinsic

from blocksparse_ops.kernels.numba.ahead import AHEAD, Ahead
from blocksparse_ops.kernels.numba.arrays import array_type
from blocksparse_ops.kernels.numba.places import Places, is_block
from blocksparse_ops.kernels.numba.records import SCALAR, Record
from blocksparse_ops.kernels.numba.sums import ColumnSums, RowSums, add_lanes, most_at_once
from blocksparse_ops.kernels.numba.vector import (
    WORD,
    WORD_BYTES,
    Code,
    bytes_of,
    llvm_scalar,
    word,
)

YES = ir.Constant(ir.IntType(1), 1)

# What all threads work on: the blocks, what stands at the input window and at the output window,
# tables of the indices counted from the start, and whether these may be padded. `initial` is the
# address of a vector of initial values, or 0; and `places` are words for Places, so many for each
# thread.
DIRECT = Record(
    "Direct",
    "input output is_padded threads initial places words",
    ahead=AHEAD,
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

    def __init__(self, context, builder, scalar, shape, record, thread):
        self.context, self.code, self.builder = context, Code(builder), builder
        self.scalar, self.size = llvm_scalar(scalar), bytes_of(scalar)
        self.by_columns, self.lanes = shape.by_columns, shape.lanes
        self.single, self.whole = shape.single, shape.whole
        self.ahead = DIRECT.address(builder, record, "ahead")
        for field in ("input", "output"):
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
        ahead = Ahead(self.context, code, self.ahead, last)
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
            ahead.prefetch_from(row)
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

    def _step(self, step):
        """That from one column to the next: in vectors they are contiguous."""
        return step if self.lanes == 1 else word(self.size)

    def _for_each_vector(self, columns, use, use_rest):
        """use(column, vectors) for some vectors at once, and use_rest(column) if some are left."""
        if self.whole:
            use(word(0), 1)
            return
        builder, first = self.builder, word(0)
        for vectors in sorted({self.vectors, 1}, reverse=True):
            step = vectors * self.lanes

            def use_some(column, _, vectors=vectors):
                use(column, vectors)
                return []

            end = builder.sub(columns, word(step - 1))
            first, _ = self.code.for_loop(first, end, word(step), [], use_some)
        if self.lanes > 1:
            with builder.if_then(builder.icmp_signed("<", first, columns)):
                use_rest(first)


class GemvRows(Rows):
    """out[n, w] += sum_v left[n, v] @ blocks[i, j], the output at the place of `right`."""

    def __init__(self, context, builder, scalar, shape, record, thread):
        super().__init__(context, builder, scalar, shape, record, thread)
        sums = ColumnSums if shape.by_columns else RowSums
        self.sums = partial(sums, self.code, scalar, shape.chains, shape.lanes)
        self.vectors = sums.vectors_at_once(scalar, shape.chains, shape.lanes)
        self.start = self._start(DIRECT.load(self.code, record, "initial"))

    def _start(self, initial):
        """What add_lanes adds to."""
        vector = ir.VectorType(self.scalar, self.lanes)
        is_given = self.builder.icmp_signed("!=", initial, word(0))
        (values,) = self.code.when(
            is_given,
            [ir.Constant(vector, None)],
            lambda _: [self.code.load(initial, vector, self.size)],
        )
        return is_given, values

    def _add(self, left, right, input_blocks, j):
        builder, code = self.builder, self.code
        _, (_, _, depth, columns), (*_, row_step, column_step) = self.blocks
        _, _, (_, place_step, left_step) = self.left
        step = column_step if self.by_columns else row_step
        out_step = self._step(self.right[2][2])
        if not self.by_columns:
            column_step = self._step(column_step)

        def add_vectors(column, vectors, overlap=None):
            sums = self.sums(vectors)

            def accumulate(v, i, values):
                block = code.offset(self._block(i, j), column, column_step)
                row = code.offset(left, v, place_step)
                return sums.accumulate(values, row, left_step, block, step, depth)

            values = self._for_each_input(input_blocks, sums.start(), accumulate)
            for vector, total in enumerate(sums.totals(values)):
                first = builder.add(column, word(vector * self.lanes))
                to = code.offset(right, first, out_step)
                add_lanes(code, total, overlap, self.start, to, self.size)

        def add_last(column):
            """A vector that overlaps another: narrower ones would sum one after the other."""
            last = builder.sub(columns, word(self.lanes))
            add_vectors(last, 1, builder.sub(column, last))

        self._for_each_vector(columns, add_vectors, add_last)


class OuterRows(Rows):
    """blocks[i, j] += scale * outer(left[n, v], right[n, w]), for some of the blocks."""

    def __init__(self, context, builder, scalar, shape, record, thread, first_block, last_block):
        super().__init__(context, builder, scalar, shape, record, thread)
        self.first_block, self.last_block = first_block, last_block
        self.vectors = most_at_once(scalar, shape.lanes)

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
        column_step, right_step = self._step(column_step), self._step(right_step)
        builder, code = self.builder, self.code

        def add_vectors(column, vectors, lanes=self.lanes):
            vector = ir.VectorType(self.scalar, lanes)
            scales = code.splat(self.scale, vector)
            columns = [builder.add(column, word(k * lanes)) for k in range(vectors)]
            places = [code.offset(right, first, right_step) for first in columns]
            factors = [code.load(place, vector, self.size) for place in places]

            def add_row(k, _):
                one = code.load(code.offset(left, k, left_step), self.scalar, self.size)
                one, row = code.splat(one, vector), code.offset(block, k, row_step)
                for first, factor in zip(columns, factors, strict=True):
                    to = code.offset(row, first, column_step)
                    product = builder.fmul(scales, builder.fmul(one, factor))
                    old = code.load(to, vector, self.size)
                    code.store(builder.fadd(old, product), to, align=self.size)
                return []

            code.for_loop(word(0), rows, word(1), [], add_row, is_short=True)

        def add_rest(column):
            """In narrower vectors: one that overlaps waits for what was just written."""
            lanes = self.lanes // 2
            while lanes:
                end = builder.add(column, word(lanes))

                def add_some(_, column=column, end=end, lanes=lanes):
                    add_vectors(column, 1, lanes)
                    return [end]

                is_left = builder.icmp_signed("<=", end, columns)
                (column,) = code.when(is_left, [column], add_some)
                lanes //= 2

        self._for_each_vector(columns, add_vectors, add_rest)


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
    """The function that runs the code which write(context, builder, scalar, shape, ...) writes."""

    @intrinsic(prefer_literal=True)
    def run(typing_context, position, record, thread, first, last):
        shape = shapes()[position.literal_value]

        def generate(context, builder, signature, values):
            write(context, builder, record.scalar, shape, *values[1:])
            return context.get_dummy_value()

        return void(position, record, thread, first, last), generate

    return run


@runner
def add_gemv(context, builder, scalar, shape, record, thread, first, last):
    GemvRows(context, builder, scalar, shape, record, thread).write(first, last)


@runner
def add_outer(context, builder, scalar, shape, record, thread, first, last):
    rows = OuterRows(context, builder, scalar, shape, record, thread, first, last)
    (batch, *_), (_, outputs, _) = rows.left[1], rows.right[1]
    rows.write(word(0), builder.mul(batch, outputs))
