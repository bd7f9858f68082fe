"""The micro-kernel: a register tile of a few rows by a few vectors, summed over a depth."""

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from blocksparse_ops.kernels.numba.compile import Unit, kernel
from blocksparse_ops.kernels.numba.panel import (
    MOST_SHAPES,
    STRIP_DEPTH,
    TILE_VECTORS,
    ceil_div,
    panel_of,
    shapes,
)
from blocksparse_ops.kernels.numba.prefetch import PREFETCH, issue_prefetch
from blocksparse_ops.kernels.numba.records import SCALAR, Record, RecordType
from blocksparse_ops.kernels.numba.vector import (
    WORD,
    WORD_BYTES,
    Code,
    bytes_of,
    llvm_scalar,
    word,
)

# A panel of a block, row by row, the elements of a row contiguous, and what to prefetch meanwhile.
FACTOR = Record("Factor", "start step", prefetch=PREFETCH)

# What a tile reads: tables of addresses, steps in bytes, a table of factors.
TASK = Record(
    "Task", "left to left_step left_block_step factors blocks depth to_step columns", scale=SCALAR
)

# Rows of the left operand and of the output that are looked up ahead of the products, so that their
# cache misses overlap. A multiple of the rows of any tile.
MOST_ADDRESSES = 48


class Tile:
    """to[m][.] += scale * sum over blocks and k < depth of left[m][block, k] * right[block](k)[.]

    For one shape of panel and one number of rows: unrolled over rows and vectors, or the
    accumulators would not stay in registers.
    """

    def __init__(self, module, scalar, shape, rows):
        self.scalar_type = scalar
        self.scalar, self.size = llvm_scalar(scalar), bytes_of(scalar)
        self.lanes, self.vectors, self.is_full, self.rows = *shape[:3], rows
        # Independent accumulators of an element, by k modulo `chains`, for narrow panels to hide
        # the latency of the FMA. A power of two, for _join_chains. The same for every number of
        # rows, so that a row's sum, in its order and its bits, does not depend on those beside it.
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
        for field, field_type in TASK.fields.items():
            llvm_type = self.scalar if field_type == SCALAR else WORD
            setattr(self, field, TASK.load(self.code, task, field, llvm_type))
        self.offsets = [self._offset(v) for v in range(self.vectors)]
        rows = self._row_addresses(self.left)
        outs = self._row_addresses(self.to)
        # With fewer products there is no time for it.
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
        addresses = (self.code.offset(table, m, word(WORD_BYTES)) for m in range(self.rows))
        return [self.code.load(address, WORD, align=WORD_BYTES) for address in addresses]

    def _add_block(self, number, values):
        rows, sums = values[: self.rows], values[self.rows :]
        factor = self.code.offset(self.factors, number, word(FACTOR.words * WORD_BYTES))
        start, step = (FACTOR.load(self.code, factor, field) for field in ("start", "step"))

        def strip(first, sums):
            issue_prefetch(self.code, FACTOR.address(self.builder, factor, "prefetch"))
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
        """All loads of a row come before its stores: the last vector may overlap others."""
        scale = self.code.splat(self.scale, self.vector)
        for m, out in enumerate(outs):
            addresses = [self.builder.add(out, offset) for offset in self.offsets]
            old = [self.code.load(address, self.vector, self.size) for address in addresses]
            new = [
                self.code.multiply_add(scale, sums[m * self.vectors + v], old[v])
                for v in range(self.vectors)
            ]
            for value, address in zip(new, addresses, strict=True):
                self.code.store(value, address, align=self.size)

    def _add_elements(self, sums):
        """One element after the other, from a copy of the sums."""
        width = self.lanes * self.vectors
        copy = self.builder.alloca(ir.ArrayType(self.scalar, width))
        copy = self.builder.ptrtoint(copy, WORD)
        add = add_elements_function(self.function.module, self.scalar_type)
        for m, out in enumerate(self._row_addresses(self.to)):
            for v in range(self.vectors):
                address = self.builder.add(copy, self.offsets[v])
                self.code.store(sums[m * self.vectors + v], address, align=self.size)
            self.builder.call(add, [copy, out, self.to_step, self.columns, self.scale])


def add_elements_function(module, scalar_type):
    """The function to[n] += scale * from[n], the former strided, in this module."""
    name = f"add_elements_{scalar_type}"
    if name in module.globals:
        return module.globals[name]
    scalar, size = llvm_scalar(scalar_type), bytes_of(scalar_type)
    function_type = ir.FunctionType(ir.VoidType(), [WORD] * 4 + [scalar])
    function = ir.Function(module, function_type, name)
    function.linkage = "internal"
    function.attributes.add("noinline")
    builder = ir.IRBuilder(function.append_basic_block())
    code = Code(builder)
    row, to, step, columns, scale = function.args

    def add(n, _):
        value = code.load(builder.add(row, builder.mul(n, word(size))), scalar, align=size)
        address = builder.add(to, builder.mul(n, step))
        total = code.multiply_add(scale, value, code.load(address, scalar, align=size))
        code.store(total, address, align=size)
        return []

    code.for_loop(word(0), columns, word(1), [], add)
    builder.ret_void()
    return function


@intrinsic(prefer_literal=True)
def run_tile(typing_context, shape, rows, task):
    """Run the tile for a shape of panels, by its position in `shapes`, and a number of rows."""
    position, scalar = shape.literal_value, task.scalar

    def generate(context, builder, signature, values):
        _, rows, task = values
        done = builder.append_basic_block()
        switch = builder.switch(rows, done)
        for rows_here in range(1, shapes(scalar)[position].rows + 1):
            tile = Tile(builder.module, scalar, shapes(scalar)[position], rows_here)
            case = builder.append_basic_block()
            switch.add_case(word(rows_here), case)
            builder.position_at_end(case)
            builder.call(tile.function, [task])
            builder.branch(done)
        builder.position_at_end(done)
        return context.get_dummy_value()

    return types.void(shape, rows, task), generate


def add_products_of(shape):
    """The tiles for a shape of panels. What is enclosed is part of a key on the disk: a number."""

    def add_products(rows, task):
        run_tile(shape, rows, task)

    return add_products


ADD_PRODUCTS = Unit(
    [add_products_of(shape) for shape in range(MOST_SHAPES)],
    lambda scalar: types.void(types.int64, RecordType(TASK, scalar)),
)
ready_add_products, call_add_products = ADD_PRODUCTS.ready, ADD_PRODUCTS.call


@kernel
def ready_tiles(panels, like):
    """Make sure that the tiles for all panels of a block are there."""
    for number in range(panels.count):
        ready_add_products(like, panel_of(panels, number, like).shape)


@kernel
def add_products_of_rows(panel, count, left, to, task):
    """Cut rows into tiles. They differ by a row at the most."""
    first = 0
    # Most blocks have rows for one tile: no need to divide.
    for tiles in range(1 if count <= panel.rows else ceil_div(count, panel.rows), 0, -1):
        rows = count - first if tiles == 1 else ceil_div(count - first, tiles)
        task.left, task.to = left + WORD_BYTES * first, to + WORD_BYTES * first
        call_add_products(task, panel.shape, (rows, task))
        first += rows
