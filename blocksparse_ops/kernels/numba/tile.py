"""The register tile: a few rows by a few vectors, summed over a depth, added to the output."""

from collections import namedtuple

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from blocksparse_ops.kernels.numba.compile import Unit, kernel
from blocksparse_ops.kernels.numba.panel import (
    MOST_TILE_ROWS,
    STRIP_DEPTH,
    TILE_VECTORS,
    ceil_div,
    kinds,
)
from blocksparse_ops.kernels.numba.prefetch import RECORD_BYTES, fetch_some
from blocksparse_ops.kernels.numba.vector import WORD, Code, bytes_of, llvm_scalar, word

# A factor is a panel of a block, and what to fetch while it is worked on: the address of its first
# row, the step to the next one, and a record of prefetch.py, at so many bytes.
RIGHT_START, RIGHT_STEP, FETCHING = 0, 8, 16
FACTOR_BYTES = FETCHING + RECORD_BYTES

# Rows of the left operand and of the output, looked up together, ahead of the products, because
# each look waits for memory.
MOST_ADDRESSES = 48


class Tile:
    """to[m][.] += scale * sum over blocks and k < depth of left[m][block, k] * right[block](k)[.]

    One kind of panel and one number of rows: the loops over them are unrolled here, so that sums
    stay in registers.
    """

    NAMES = (
        "left", "left_step", "left_block_step", "factors", "blocks", "depth", "to", "to_step",
        "columns", "scale",
    )  # fmt: skip

    def __init__(self, module, scalar, panel, rows):
        self.scalar_type = scalar
        self.scalar, self.size = llvm_scalar(scalar), bytes_of(scalar)
        self.lanes, self.vectors, self.is_full, _ = panel
        self.rows = rows
        # As many sums beside each other as keep the multipliers busy with one row of one vector:
        # the same for every number of rows, so that a row's sum is taken in the same order in each.
        self.chains = max(TILE_VECTORS // self.vectors, 1)
        self.vector = ir.VectorType(self.scalar, self.lanes)
        self.function = self._declare(module)
        self._write()

    def _declare(self, module):
        kind = ir.FunctionType(ir.VoidType(), [WORD] * (len(self.NAMES) - 1) + [self.scalar])
        name = f"tile_{self.scalar}_{self.lanes}x{self.vectors}_{self.rows}"
        function = ir.Function(module, kind, name)
        function.linkage = "internal"
        function.attributes.add("noinline")
        for name, argument in zip(self.NAMES, function.args, strict=True):
            setattr(self, name, argument)
        return function

    def _write(self):
        builder = ir.IRBuilder(self.function.append_basic_block())
        self.code, self.builder = Code(builder), builder
        self.offsets = [self._offset(v) for v in range(self.vectors)]
        rows = self._row_addresses(self.left)
        outs = self._row_addresses(self.to)
        for out in outs:
            for offset in self.offsets:
                self.code.prefetch(builder.add(out, offset), write=1, locality=3)
        sums = [ir.Constant(self.vector, None)] * (self.chains * self.rows * self.vectors)
        _, rows_and_sums = self.code.for_loop(
            word(0), self.blocks, word(1), rows + sums, self._add_block
        )
        sums = self._join_chains(rows_and_sums[self.rows :])
        adjacent = builder.icmp_signed("==", self.to_step, word(self.size))
        with builder.if_else(adjacent) as (then, otherwise):
            with then:
                self._add_rows(outs, sums)
            with otherwise:
                self._add_elements(sums)
        builder.ret_void()

    def _offset(self, v):
        """Where vector v starts, in bytes from the first column; the last may overlap others."""
        start = word(v * self.lanes)
        if v + 1 == self.vectors or (not self.is_full and v > 0):
            last = self.builder.sub(self.columns, word(self.lanes))
            start = self.code.smaller(start, last)
        return self.builder.mul(start, word(self.size))

    def _row_addresses(self, table):
        addresses = (self.code.offset(table, m, word(8)) for m in range(self.rows))
        return [self.code.load(address, WORD, align=8) for address in addresses]

    def _add_block(self, number, values):
        rows, sums = values[: self.rows], values[self.rows :]
        factor = self.builder.add(self.factors, self.builder.mul(number, word(FACTOR_BYTES)))
        start = self.code.load(factor, WORD, align=8)
        step = self.code.load(self.builder.add(factor, word(RIGHT_STEP)), WORD, align=8)
        record = self.builder.add(factor, word(FETCHING))

        def strip(first, sums):
            fetch_some(self.code, record)
            end = self.code.smaller(self.builder.add(first, word(STRIP_DEPTH)), self.depth)
            return self._strip(first, end, rows, start, step, sums)

        _, sums = self.code.for_loop(word(0), self.depth, word(STRIP_DEPTH), sums, strip)
        return [self.builder.add(row, self.left_block_step) for row in rows] + sums

    def _strip(self, first, end, rows, start, step, sums):
        last = self.builder.sub(end, word(self.chains - 1))

        def turn(k, sums):
            for chain in range(self.chains):
                sums = self._step(chain, self.builder.add(k, word(chain)), rows, start, step, sums)
            return sums

        k, sums = self.code.for_loop(first, last, word(self.chains), sums, turn)
        for chain in range(self.chains - 1):
            here = self.builder.add(k, word(chain))
            sums = self.code.when(
                self.builder.icmp_signed("<", here, end),
                sums,
                lambda sums, chain=chain, here=here: self._step(
                    chain, here, rows, start, step, sums
                ),
            )
        return sums

    def _step(self, chain, k, rows, start, step, sums):
        """Add the products of one k to the sums of a chain."""
        row = self.builder.add(start, self.builder.mul(k, step))
        right = [
            self.code.load(self.builder.add(row, offset), self.vector, align=self.size)
            for offset in self.offsets
        ]
        left_offset = self.builder.mul(k, self.left_step)
        sums = list(sums)
        for m, left in enumerate(rows):
            address = self.builder.add(left, left_offset)
            factor = self.code.load(address, self.scalar, align=self.size)
            factor = self.code.splat(factor, self.vector)
            for v in range(self.vectors):
                at = (chain * self.rows + m) * self.vectors + v
                sums[at] = self.code.multiply_add(factor, right[v], sums[at])
        return sums

    def _join_chains(self, sums):
        while len(sums) > self.rows * self.vectors:
            half = len(sums) // 2
            sums = [self.builder.fadd(sums[k], sums[half + k]) for k in range(half)]
        return sums

    def _add_rows(self, outs, sums):
        """All of a row is read before any is written: the last vector may overlap others."""
        scale = self.code.splat(self.scale, self.vector)
        for m, out in enumerate(outs):
            places = [self.builder.add(out, offset) for offset in self.offsets]
            totals = [
                self.code.multiply_add(
                    scale, sums[m * self.vectors + v], self.code.load(place, self.vector, self.size)
                )
                for v, place in enumerate(places)
            ]
            for total, place in zip(totals, places, strict=True):
                self.code.store(total, place, align=self.size)

    def _add_elements(self, sums):
        """One element after the other, from a copy of the sums."""
        width = self.lanes * self.vectors
        copy = self.builder.alloca(ir.ArrayType(self.scalar, width))
        copy = self.builder.ptrtoint(copy, WORD)
        add = add_elements_function(self.function.module, self.scalar_type)
        for m, out in enumerate(self._row_addresses(self.to)):
            for v in range(self.vectors):
                place = self.builder.add(copy, self.offsets[v])
                self.code.store(sums[m * self.vectors + v], place, align=self.size)
            self.builder.call(add, [copy, out, self.to_step, self.columns, self.scale])


def add_elements_function(module, scalar_type):
    """The function to[n] += scale * from[n], the former a step apart, in this module."""
    name = f"add_elements_{scalar_type}"
    if name in module.globals:
        return module.globals[name]
    scalar, size = llvm_scalar(scalar_type), bytes_of(scalar_type)
    kind = ir.FunctionType(ir.VoidType(), [WORD] * 4 + [scalar])
    function = ir.Function(module, kind, name)
    function.linkage = "internal"
    function.attributes.add("noinline")
    builder = ir.IRBuilder(function.append_basic_block())
    code = Code(builder)
    row, to, step, columns, scale = function.args

    def add(n, _):
        value = code.load(builder.add(row, builder.mul(n, word(size))), scalar, align=size)
        place = builder.add(to, builder.mul(n, step))
        total = code.multiply_add(scale, value, code.load(place, scalar, align=size))
        code.store(total, place, align=size)
        return []

    code.for_loop(word(0), columns, word(1), [], add)
    builder.ret_void()
    return function


@intrinsic
def run_tile(typing_context, kind, rows, arguments):
    """Run the tile of a kind of panel and a number of rows."""
    scalar = arguments[len(Tile.NAMES) - 1]

    def generate(context, builder, signature, values):
        kind, rows, arguments = values
        number = builder.add(builder.mul(kind, word(MOST_TILE_ROWS)), rows)
        done = builder.append_basic_block()
        arguments = cgutils.unpack_tuple(builder, arguments)
        switch = builder.switch(number, done)
        for kind_number, panel in enumerate(kinds(scalar)):
            for rows_here in range(1, panel.rows + 1):
                tile = Tile(builder.module, scalar, panel, rows_here)
                case = builder.append_basic_block()
                switch.add_case(word(kind_number * MOST_TILE_ROWS + rows_here), case)
                builder.position_at_end(case)
                builder.call(tile.function, arguments)
                builder.branch(done)
        builder.position_at_end(done)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, arguments), generate


def add_products(
    kind, rows, left, left_step, left_block_step, factors, blocks, depth, to, to_step, columns,
    scale,
):  # fmt: skip
    """to[m][.] += scale * sum over blocks and k < depth of left[m][block, k] * right[block](k)[.]

    All but the sizes are addresses, and steps in bytes; `left` and `to` are tables of addresses.
    """
    run_tile(kind, rows, (left, left_step, left_block_step, factors, blocks, depth, to, to_step,
                          columns, scale))  # fmt: skip


ADD_PRODUCTS = Unit(add_products, lambda scalar: types.void(*[types.int64] * 11, scalar))
call_add_products = ADD_PRODUCTS.call

# The tables and the steps of rows that tiles work on.
Left = namedtuple("Left", "table step block_step")
To = namedtuple("To", "table step")


@kernel
def add_products_of_rows(panel, count, left, factors, blocks, depth, to, scale):
    """Cut rows into tiles. They differ by a row at the most."""
    first = 0
    for tiles in range(ceil_div(count, panel.rows), 0, -1):
        rows = ceil_div(count - first, tiles)
        call_add_products(
            scale,
            (
                panel.kind, rows, left.table + 8 * first, left.step, left.block_step, factors,
                blocks, depth, to.table + 8 * first, to.step, panel.columns, scale,
            ),
        )  # fmt: skip
        first += rows
