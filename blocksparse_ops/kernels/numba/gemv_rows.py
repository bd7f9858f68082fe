"""The code of a product where triples are worked on as the examples stand."""

from functools import partial

from llvmlite import ir

from blocksparse_ops.kernels.numba.rows import DIRECT, Rows, runner
from blocksparse_ops.kernels.numba.sums import ColumnSums, RowSums, add_lanes
from blocksparse_ops.kernels.numba.vector import word


class GemvRows(Rows):
    """out[n, w] += sum_v left[n, v] @ blocks[i, j], the output at the place of `right`.

    If `shape.together`, blocks have one column, and the lanes are those of so many rows.
    """

    def __init__(self, context, builder, scalar, shape, record, thread):
        super().__init__(context, builder, scalar, shape, record, thread)
        sums = ColumnSums if shape.by_columns else RowSums
        self.vectors = sums.vectors_at_once(scalar, shape.chains, shape.lanes)
        initial = self._initial(DIRECT.load(self.code, record, "initial"))
        self.start_of_rows = initial
        if shape.together:
            self.rows_at_once, self.lanes = shape.lanes, 1
            initial = initial[0], self.code.shuffle(initial[1], initial[1], [0])
        self.start = initial
        self.sums = partial(sums, self.code, scalar, shape.chains)

    def _initial(self, initial):
        """What add_lanes adds to."""
        vector = ir.VectorType(self.scalar, self.lanes)
        is_given = self.builder.icmp_signed("!=", initial, word(0))
        (values,) = self.code.when(
            is_given,
            [ir.Constant(vector, None)],
            lambda _: [self.code.load(initial, vector, self.size)],
        )
        return is_given, values

    def _add_rows(self, left, right, table):
        builder, code, rows = self.builder, self.code, range(self.rows_at_once)
        _, (_, _, depth, _), _ = self.blocks
        _, _, (left_step, place_step, _) = self.left
        sums = self.sums(self.rows_at_once, 1)

        def accumulate(v, values):
            of_place = code.offset(left, v, place_step)
            lefts = [code.offset(of_place, k, left_step) for k in rows]
            places = (builder.add(v, builder.mul(word(k), self.inputs)) for k in rows)
            columns = [self._block(self._index(table, place), None) for place in places]
            return sums.accumulate_columns(values, lefts, columns, depth)

        (total,) = sums.totals(self._for_each_input(sums.start(), accumulate))
        add_lanes(code, total, None, self.start_of_rows, right, self.size)

    def _add(self, left, right, input_blocks, j):
        builder, code = self.builder, self.code
        _, (_, _, depth, columns), (*_, row_step, column_step) = self.blocks
        _, _, (_, place_step, left_step) = self.left
        step = column_step if self.by_columns else row_step
        out_step = self._step(self.right[2][2])
        if not self.by_columns:
            column_step = self._step(column_step)

        def add_vectors(column, vectors, overlap=None):
            sums = self.sums(self.lanes, vectors)

            def accumulate(v, values):
                block = self._block(self._index(input_blocks, v), j)
                block = code.offset(block, column, column_step)
                row = code.offset(left, v, place_step)
                return sums.accumulate(values, row, left_step, block, step, depth)

            values = self._for_each_input(sums.start(), accumulate)
            for vector, total in enumerate(sums.totals(values)):
                first = builder.add(column, word(vector * self.lanes))
                to = code.offset(right, first, out_step)
                add_lanes(code, total, overlap, self.start, to, self.size)

        def add_last(column):
            """A vector that overlaps another: narrower ones would sum one after the other."""
            last = builder.sub(columns, word(self.lanes))
            add_vectors(last, 1, builder.sub(column, last))

        self._for_each_vector(columns, add_vectors, add_last)


@runner
def add_gemv(context, builder, scalar, shape, record, thread, first, last):
    GemvRows(context, builder, scalar, shape, record, thread).write(first, last)
