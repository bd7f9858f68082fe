"""The register tile: a few rows by a few vectors, summed over a depth, added to the output."""

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from blocksparse_ops.kernels.numba.arrays import store
from blocksparse_ops.kernels.numba.compile import Unit, kernel
from blocksparse_ops.kernels.numba.memory import set_word
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
RIGHT_STEP, FETCHING = 8, 16
FACTOR_BYTES = FETCHING + RECORD_BYTES

# What a tile reads, a word each: tables of addresses, steps in bytes, the address of the factors.
TASK = ("left", "to", "left_step", "left_block_step", "factors", "blocks", "depth", "to_step",
        "columns", "scale")  # fmt: skip
TASK_BYTES = 8 * len(TASK)

# Rows of the left operand and of the output, looked up together, ahead of the products, because
# each look waits for memory.
MOST_ADDRESSES = 64


class Tile:
    """to[m][.] += scale * sum over blocks and k < depth of left[m][block, k] * right[block](k)[.]

    One kind of panel and one number of rows: the loops over them are unrolled here, so that sums
    stay in registers.
    """

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
        name = f"tile_{self.scalar}_{self.lanes}x{self.vectors}_{self.rows}"
        function = ir.Function(module, ir.FunctionType(ir.VoidType(), [WORD]), name)
        function.linkage = "internal"
        function.attributes.add("noinline")
        return function

    def _write(self):
        builder = ir.IRBuilder(self.function.append_basic_block())
        self.code, self.builder = Code(builder), builder
        (task,) = self.function.args
        for position, name in enumerate(TASK):
            kind = self.scalar if name == "scale" else WORD
            place = builder.add(task, word(8 * position))
            setattr(self, name, self.code.load(place, kind, align=self.size))
        self.offsets = [self._offset(v) for v in range(self.vectors)]
        rows = self._row_addresses(self.left)
        outs = self._row_addresses(self.to)
        # With few products there is no time to fetch it.
        with builder.if_then(builder.icmp_signed(">", self.depth, word(STRIP_DEPTH))):
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
def run_tile(typing_context, kind, rows, task, scale):
    """Run the tile of a kind of panel and a number of rows."""

    def generate(context, builder, signature, values):
        kind, rows, task, _ = values
        done = builder.append_basic_block()
        number = builder.add(builder.mul(kind, word(MOST_TILE_ROWS)), rows)
        switch = builder.switch(number, done)
        for kind_number, panel in enumerate(kinds(scale)):
            for rows_here in range(1, panel.rows + 1):
                tile = Tile(builder.module, scale, panel, rows_here)
                case = builder.append_basic_block()
                switch.add_case(word(kind_number * MOST_TILE_ROWS + rows_here), case)
                builder.position_at_end(case)
                builder.call(tile.function, [task])
                builder.branch(done)
        builder.position_at_end(done)
        return context.get_dummy_value()

    return types.void(kind, rows, task, scale), generate


def add_products(kind, rows, task, scale):
    """to[m][.] += scale * sum over blocks and k < depth of left[m][block, k] * right[block](k)[.]

    `task` is the address of a record of TASK, `scale` only gives the type of the scalar.
    """
    run_tile(kind, rows, task, scale)


ADD_PRODUCTS = Unit(add_products, lambda scalar: types.void(*[types.int64] * 3, scalar))
call_add_products = ADD_PRODUCTS.call


@kernel
def set_right(factor, right):
    """Fill the first words of a factor."""
    set_word(factor, 0, right.start)
    set_word(factor, 1, right.step)


@kernel
def set_task(task, left_steps, factors, blocks, depth, to_step, columns, scale):
    """Fill a record of TASK, but for the tables; the steps are of depth and of blocks."""
    words = (*left_steps, factors, blocks, depth, to_step, columns)
    for position in range(len(words)):
        set_word(task, position + 2, words[position])
    store(task + TASK_BYTES - 8, scale)


@kernel
def add_products_of_rows(panel, count, left, to, task, scale):
    """Cut rows into tiles. They differ by a row at the most."""
    first = 0
    # Most blocks have rows for one tile: no need to divide.
    for tiles in range(1 if count <= panel.rows else ceil_div(count, panel.rows), 0, -1):
        rows = count - first if tiles == 1 else ceil_div(count - first, tiles)
        set_word(task, 0, left + 8 * first)
        set_word(task, 1, to + 8 * first)
        call_add_products(scale, (panel.kind, rows, task, scale))
        first += rows
