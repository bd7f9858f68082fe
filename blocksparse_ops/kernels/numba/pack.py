"""Packing: panels whose rows are not contiguous, copied into scratch where they are."""

from collections import namedtuple

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from blocksparse_ops.kernels.numba.arrays import load, store
from blocksparse_ops.kernels.numba.compile import Unit, kernel
from blocksparse_ops.kernels.numba.panel import TILE_VECTORS, lanes_of, size_of
from blocksparse_ops.kernels.numba.prefetch import PREFETCH, issue_prefetch
from blocksparse_ops.kernels.numba.records import RecordType, scalar_of
from blocksparse_ops.kernels.numba.vector import (
    WORD,
    Code,
    bytes_of,
    full_lanes,
    llvm_scalar,
    word,
)

PIECE_BYTES = 16


class Square:
    """A square of `lanes` by `lanes` elements, transposed: to[k][n] = from[n][k].

    Pieces of 128 bits are loaded in order, which costs no shuffle. Inside of pieces, vectors
    exchange lanes by shuffles, in a round for each bit of a lane's number.
    """

    def __init__(self, code, scalar, lanes):
        self.code, self.builder = code, code.builder
        self.scalar, self.size, self.lanes = llvm_scalar(scalar), bytes_of(scalar), lanes
        self.piece = min(lanes, PIECE_BYTES // self.size)

    def transpose(self, start, step, to, to_step):
        rows = []
        for k in range(0, self.lanes, self.piece):
            corner = self.builder.add(start, word(k * self.size))
            rows += [self._gather(corner, n, step) for n in range(self.piece)]
        bit = self.piece // 2
        while bit > 0:
            rows = self._exchange(rows, bit)
            bit //= 2
        for k, row in enumerate(rows):
            self.code.store(row, self.code.offset(to, k, to_step), align=self.size)

    def _gather(self, corner, first, step):
        """Pieces a step of rows from each other, as one vector."""
        vector = ir.VectorType(self.scalar, self.piece)
        pieces = [
            self.code.load(self.code.offset(corner, n, step), vector, align=self.size)
            for n in range(first, self.lanes, self.piece)
        ]
        while len(pieces) > 1:
            pairs = zip(pieces[::2], pieces[1::2], strict=True)
            pieces = [
                self.code.shuffle(one, other, list(range(2 * one.type.count)))
                for one, other in pairs
            ]
        return pieces[0]

    def _exchange(self, rows, bit):
        """The lanes of a pair of rows, and between them those of the other, by one bit."""
        numbers = range(self.lanes)
        low = [lane if not lane & bit else self.lanes + lane - bit for lane in numbers]
        high = [lane + bit if not lane & bit else self.lanes + lane for lane in numbers]
        rows = list(rows)
        for m in numbers:
            if not m & bit:
                pair = rows[m], rows[m + bit]
                rows[m], rows[m + bit] = (self.code.shuffle(*pair, side) for side in (low, high))
        return rows


class Transpose:
    """to[k][n] = from[n][k], in squares of so many lanes; the last overlap those before them."""

    NAMES = ("start", "step", "depth", "columns", "to", "to_step", "prefetch")

    def __init__(self, module, scalar, lanes):
        function_type = ir.FunctionType(ir.VoidType(), [WORD] * len(self.NAMES))
        name = f"transpose_{llvm_scalar(scalar)}_{lanes}"
        self.function = ir.Function(module, function_type, name)
        self.function.linkage = "internal"
        for name, argument in zip(self.NAMES, self.function.args, strict=True):
            setattr(self, name, argument)
        self.builder = ir.IRBuilder(self.function.append_basic_block())
        self.code = Code(self.builder)
        self.size, self.lanes = bytes_of(scalar), lanes
        if lanes > 1:
            self._leave_small_to(Transpose(module, scalar, lanes // 2))
        self._write_squares(Square(self.code, scalar, lanes))
        self.builder.ret_void()

    def _leave_small_to(self, narrower):
        sizes = self.depth, self.columns
        small = (self.builder.icmp_signed("<", size, word(self.lanes)) for size in sizes)
        with self.builder.if_then(self.builder.or_(*small)):
            self.builder.call(narrower.function, self.function.args)
            self.builder.ret_void()

    def _write_squares(self, square):
        builder, size, lanes = self.builder, word(self.size), word(self.lanes)

        def squares_of_columns(n, _):
            n = self.code.smaller(n, builder.sub(self.columns, lanes))
            source = builder.add(self.start, builder.mul(n, self.step))
            target = builder.add(self.to, builder.mul(n, size))

            def one_square(k, _):
                issue_prefetch(self.code, self.prefetch)
                k = self.code.smaller(k, builder.sub(self.depth, lanes))
                corner = builder.add(source, builder.mul(k, size))
                to = builder.add(target, builder.mul(k, self.to_step))
                square.transpose(corner, self.step, to, self.to_step)
                return []

            self.code.for_loop(word(0), self.depth, lanes, [], one_square)
            return []

        self.code.for_loop(word(0), self.columns, lanes, [], squares_of_columns)


@intrinsic
def run_transpose(typing_context, arguments):
    """Transpose elements of the type of scalar of the last argument, a record."""
    scalar = scalar_of(arguments[-1])

    def generate(context, builder, signature, values):
        transpose = Transpose(builder.module, scalar, full_lanes(scalar))
        builder.call(transpose.function, cgutils.unpack_tuple(builder, values[0]))
        return context.get_dummy_value()

    return types.void(arguments), generate


def transpose(start, step, depth, columns, to, to_step, prefetch):
    """to[k][n] = from[n][k] for k < depth, n < columns: addresses, and steps in bytes."""
    run_transpose((start, step, depth, columns, to, to_step, prefetch))


TRANSPOSE = Unit(
    transpose, lambda scalar: types.void(*[types.int64] * 6, RecordType(PREFETCH, scalar))
)
ready_transpose, call_transpose = TRANSPOSE.ready, TRANSPOSE.call

# The right operand, row by row: the elements of a row are contiguous.
Right = namedtuple("Right", "start step")


@intrinsic
def copy_vectors(typing_context, start, count, to, like):
    """to[n] = from[n], of elements for one vector at least. The last one overlaps others."""
    scalar = scalar_of(like)
    size, lanes = bytes_of(scalar), full_lanes(scalar)
    vector_type = ir.VectorType(llvm_scalar(scalar), lanes)

    def generate(context, builder, signature, arguments):
        start, count, to, _ = arguments
        code = Code(builder)
        last = builder.sub(count, word(lanes))

        def copy(n, _):
            offset = builder.mul(n, word(size))
            vector = code.load(builder.add(start, offset), vector_type, align=size)
            code.store(vector, builder.add(to, offset), align=size)
            return []

        def copy_first(vectors):
            """Without a loop, as many as the widest panel has."""
            copy(word((vectors - 1) * lanes), None)
            if vectors < TILE_VECTORS:
                more = builder.icmp_signed(">", last, word(vectors * lanes))
                with builder.if_then(more):
                    copy_first(vectors + 1)

        with builder.if_then(builder.icmp_signed(">", last, word(0))):
            copy_first(1)
        code.for_loop(word(TILE_VECTORS * lanes), last, word(lanes), [], copy)
        copy(last, None)
        return context.get_dummy_value()

    return types.void(start, count, to, like), generate


@kernel
def copy_strided(start, step, count, to, like):
    """to[n] = from[n], the latter strided."""
    for n in range(count):
        store(to + n * size_of(like), load(start + n * step, like))


@kernel
def copy_elements(start, step, count, to, like):
    """to[n] = from[n], the latter strided; by vectors if it is contiguous."""
    if step == size_of(like) and count >= lanes_of(like):
        copy_vectors(start, count, to, like)
    else:
        copy_strided(start, step, count, to, like)


@kernel
def pack_if_strided(corner, row_step, column_step, depth, panel, packed, prefetch):
    """A panel of a matrix of any two strides, as a tile reads it.

    In place if its rows are contiguous, else packed.
    """
    size = size_of(prefetch)
    if column_step == size:
        return Right(corner, row_step)
    to_step = panel.width * size
    if row_step == size:
        arguments = (corner, column_step, depth, panel.columns, packed, to_step, prefetch)
        call_transpose(prefetch, 0, arguments)
    else:
        for k in range(depth):
            start = corner + k * row_step
            copy_strided(start, column_step, panel.columns, packed + k * to_step, prefetch)
    return Right(packed, to_step)
