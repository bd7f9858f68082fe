"""The code of an outer product where triples are worked on as the examples stand."""

from llvmlite import ir

from blocksparse_ops.kernels.numba.rows import Rows, runner
from blocksparse_ops.kernels.numba.sums import most_at_once
from blocksparse_ops.kernels.numba.vector import word


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

        def add_block(v, _):
            i = self._index(input_blocks, v)
            number = i if self.one_index else builder.add(builder.mul(i, oBlocks), j)
            is_mine = builder.and_(
                builder.icmp_signed(">=", number, self.first_block),
                builder.icmp_signed("<", number, self.last_block),
            )
            with builder.if_then(is_mine, likely=True):
                sides = (code.offset(left, v, place_step), left_step), (right, self.right[2][2])
                self._add_block(self._block(i, j), *(sides[::-1] if self.by_columns else sides))
            return []

        self._for_each_input([], add_block)

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


@runner
def add_outer(context, builder, scalar, shape, record, thread, first, last):
    rows = OuterRows(context, builder, scalar, shape, record, thread, first, last)
    (batch, *_), (_, outputs, _) = rows.left[1], rows.right[1]
    rows.write(word(0), builder.mul(batch, outputs))
