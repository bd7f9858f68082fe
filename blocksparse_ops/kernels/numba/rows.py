"""The code of the direct path: rows of the output one after the other, for one shape of blocks."""

from llvmlite import ir
from numba.core.types import void
from numba.extending import intrinsic

from blocksparse_ops.kernels.numba.ahead import AHEAD, Ahead
from blocksparse_ops.kernels.numba.arrays import array_type
from blocksparse_ops.kernels.numba.places import Places, is_block
from blocksparse_ops.kernels.numba.records import SCALAR, Record
from blocksparse_ops.kernels.numba.shapes import shapes
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
# tables of the indices counted from the start, and whether these may be padded. `index` is the one
# of both that matters where blocks lie along one axis, and `index_step` their distance. `initial`
# is the address of a vector of initial values, or 0; and `places` are words for Places, so many for
# each thread.
DIRECT = Record(
    "Direct",
    "input output index index_step is_padded threads initial places words",
    ahead=AHEAD,
    blocks=array_type(4),
    left=array_type(3),
    right=array_type(3),
    scale=SCALAR,
)


class Rows:
    """Code that works on some rows n * outputs + w of the output window, one after the other.

    What takes longer than a small product is left out where it can be: loops over the input window
    and over the output window, if they have one place, `shape.one_input` and `shape.one_output`;
    the index that is 0 everywhere, if blocks lie along one axis, `shape.one_index`; and the loop
    over the vectors of a block, if it has `shape.vectors`, and all are full. If `shape.padded`,
    places of either window may be.
    """

    def __init__(self, context, builder, scalar, shape, record, thread):
        self.context, self.code, self.builder = context, Code(builder), builder
        self.scalar, self.size = llvm_scalar(scalar), bytes_of(scalar)
        self.by_columns, self.lanes = shape.by_columns, shape.lanes
        self.one_input, self.one_output = shape.one_input, shape.one_output
        self.one_index, self.padded = shape.one_index, shape.padded
        self.all_vectors, self.rows_at_once = shape.vectors, 1
        self.ahead = DIRECT.address(builder, record, "ahead")
        for field in ("input", "output", "index", "index_step"):
            setattr(self, field, DIRECT.load(self.code, record, field))
        for field in ("blocks", "left", "right"):
            setattr(self, field, DIRECT.load_array(self.code, record, field))
        self.scale = DIRECT.load(self.code, record, "scale", self.scalar)
        self.inputs = word(1) if shape.one_input else self.left[1][1]
        self.outputs = self.right[1][1]
        places, words = (DIRECT.load(self.code, record, field) for field in ("places", "words"))
        own = self.code.offset(places, builder.mul(thread, words), word(WORD_BYTES))
        self.places = Places(self.code, self.inputs, own)

    def write(self, first, last):
        """All of rows `first` to `last`."""
        ahead = Ahead(self.context, self.code, self.ahead, last)
        (self._write_examples if self.one_output else self._write_windows)(first, last, ahead)

    def _write_examples(self, first, last, ahead):
        builder, code = self.builder, self.code
        left, _, (left_step, *_) = self.left
        right, _, (right_step, *_) = self.right
        table = self.index if self.one_index else self.input
        steps = left_step, right_step, builder.mul(self.inputs, word(WORD_BYTES))
        starts = zip((left, right, table), steps, strict=True)
        values = [code.offset(start, first, step) for start, step in starts]
        for rows in sorted({self.rows_at_once, 1}, reverse=True):

            def work(row, values, rows=rows):
                ahead.prefetch_from(row, rows)
                if rows > 1:
                    self._add_rows(*values)
                else:
                    j = None if self.one_index else self._index(self.output, row)
                    self._add(*values, j)
                by = (builder.mul(step, word(rows)) for step in steps)
                return [builder.add(*pair) for pair in zip(values, by, strict=True)]

            end = builder.sub(last, word(rows - 1))
            first, values = code.for_loop(first, end, word(rows), values, work)

    def _write_windows(self, first, last, ahead):
        builder, code = self.builder, self.code
        left, _, (left_step, *_) = self.left
        right, _, (right_step, place_step, *_) = self.right
        others = builder.mul(builder.sub(self.outputs, word(1)), place_step)
        wrap_step = builder.sub(right_step, others)
        n = builder.sdiv(first, self.outputs)
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

    def _for_each_input(self, values, body):
        """Values turned into body(v, values) for each place of an input window."""
        if self.one_input:
            return body(word(0), values)
        if self.padded:
            return self.places.for_each(values, body)
        return self.code.for_loop(word(0), self.inputs, word(1), values, body)[1]

    def _block(self, i, j):
        data, _, (i_step, j_step, *_) = self.blocks
        if self.one_index:
            return self.code.offset(data, i, self.index_step)
        return self.code.offset(self.code.offset(data, i, i_step), j, j_step)

    def _step(self, step):
        """That from one column to the next: in vectors they are contiguous."""
        return step if self.lanes == 1 else word(self.size)

    def _for_each_vector(self, columns, use, use_rest):
        """use(column, vectors) for some vectors at once, and use_rest(column) if some are left."""
        if self.all_vectors:
            use(word(0), self.all_vectors)
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
