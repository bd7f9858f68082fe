"""Products of a row with some columns of a small block, summed in registers.

An element is summed in chains, by k modulo their number (of a remainder the last k in the last
chain), which are joined by halves. They are the lanes of one vector where columns are contiguous,
and a vector each where rows are: so both layouts give the same bits. For that, products and sums
are not joined to one step either.
"""

from llvmlite import ir

from blocksparse_ops.kernels.numba.vector import VECTOR_BYTES, bytes_of, llvm_scalar, word


def most_chains(scalar):
    """Of a depth of 1, and of no other, there is one."""
    return max(min(VECTOR_BYTES, 32) // bytes_of(scalar), 2)


class Sums:
    """Code that sums products with `lanes` columns in `chains`."""

    def __init__(self, code, scalar, chains, lanes):
        self.code, self.builder = code, code.builder
        self.scalar, self.size = llvm_scalar(scalar), bytes_of(scalar)
        self.chains, self.lanes = chains, lanes
        self.row = ir.VectorType(self.scalar, lanes)

    def start(self):
        """The values of no products."""
        raise NotImplementedError

    def accumulate(self, sums, left, left_step, block, step, depth):
        """Add left[k] * block[k][.] for k < depth. Steps are in bytes."""
        raise NotImplementedError

    def total(self, sums):
        """The sums of all columns, as one vector."""
        raise NotImplementedError

    def _chains_of(self, depth, sums, add, add_last):
        """Add products k to k + chains, and at last those from depth - chains on."""
        end = self.builder.sub(depth, word(self.chains - 1))
        k, sums = self.code.for_loop(word(0), end, word(self.chains), sums, add)
        some_left = self.builder.icmp_signed("<", k, depth)
        return self.code.when(some_left, sums, lambda sums: add_last(k, sums))

    def _product(self, one, other, total):
        return self.builder.fadd(total, self.builder.fmul(one, other))


class RowSums(Sums):
    """Of blocks whose rows are contiguous: a vector of columns for each chain."""

    def start(self):
        return [ir.Constant(self.row, None)] * self.chains

    def accumulate(self, sums, left, left_step, block, step, depth):
        def add(chain, k, sums):
            at = self.code.load(self.code.offset(left, k, left_step), self.scalar, self.size)
            row = self.code.load(self.code.offset(block, k, step), self.row, self.size)
            sums = list(sums)
            sums[chain] = self._product(self.code.splat(at, self.row), row, sums[chain])
            return sums

        def add_all(k, sums):
            for chain in range(self.chains):
                sums = add(chain, self.builder.add(k, word(chain)), sums)
            return sums

        def add_last(k, sums, back=1):
            if back == self.chains:
                return sums
            here = self.builder.sub(depth, word(back))
            is_left = self.builder.icmp_signed("<=", k, here)
            return self.code.when(
                is_left,
                sums,
                lambda sums: add_last(k, add(self.chains - back, here, sums), back + 1),
            )

        if self.chains == 1:  # the depth is 1
            return add(0, word(0), sums)
        return self._chains_of(depth, sums, add_all, add_last)

    def total(self, sums):
        while len(sums) > 1:
            half = len(sums) // 2
            sums = [self.builder.fadd(sums[k], sums[half + k]) for k in range(half)]
        return sums[0]


class ColumnSums(Sums):
    """Of blocks whose columns are contiguous, and a contiguous row: a vector for each column."""

    def __init__(self, *args):
        super().__init__(*args)
        self.column = ir.VectorType(self.scalar, self.chains)

    def start(self):
        return [ir.Constant(self.column, None)] * self.lanes

    def accumulate(self, sums, left, left_step, block, step, depth):
        size = word(self.size)

        def products(k, sums):
            at = self.code.load(self.code.offset(left, k, size), self.column, self.size)
            columns = (self.code.offset(block, q, step) for q in range(self.lanes))
            columns = (self.code.offset(column, k, size) for column in columns)
            columns = (self.code.load(column, self.column, self.size) for column in columns)
            return [
                self._product(at, column, total)
                for column, total in zip(columns, sums, strict=True)
            ]

        def last_products(k, sums):
            before = self.builder.sub(depth, word(self.chains))
            done = self.builder.sub(k, before)
            new = products(before, sums)
            return [select_from(self.code, done, *pair) for pair in zip(new, sums, strict=True)]

        if self.chains == 1:  # the depth is 1
            return products(word(0), sums)
        return self._chains_of(depth, sums, products, last_products)

    def total(self, sums):
        """Vectors hold the chains of as many columns as they have lanes for."""
        chains = self.chains
        while chains > 1:
            columns = min(len(sums), 2) * sums[0].type.count // chains
            halves = [
                [
                    column * chains + first + k
                    for column in range(columns)
                    for k in range(chains // 2)
                ]
                for first in (0, chains // 2)
            ]
            sums = [
                self.builder.fadd(*(self.code.shuffle(*pair, half) for half in halves))
                for pair in pairs(sums)
            ]
            chains //= 2
        while len(sums) > 1:
            count = 2 * sums[0].type.count
            sums = [self.code.shuffle(*pair, list(range(count))) for pair in pairs(sums)]
        return sums[0]


def pairs(vectors):
    """Vectors two by two, or the only one with itself."""
    return [(vectors[k], vectors[min(k + 1, len(vectors) - 1)]) for k in range(0, len(vectors), 2)]


def select_from(code, first, more, less):
    """The lanes of `more` from number `first` on, and before them those of `less`."""
    numbers = ir.VectorType(word(0).type, more.type.count)
    mask = code.builder.icmp_signed(
        ">=", ir.Constant(numbers, list(range(numbers.count))), code.splat(first, numbers)
    )
    return code.builder.select(mask, more, less)


def add_lanes(code, total, overlap, initial, to, step, size):
    """to[q] += total[q] for all lanes q from number `overlap` on.

    With the address of a vector of initial values that is not 0, to[q] = initial[q] + total[q].
    """
    builder, vector = code.builder, total.type
    is_started = builder.icmp_signed("!=", initial, word(0))
    adjacent = builder.icmp_signed("==", step, word(size))
    with builder.if_else(adjacent) as (then, otherwise):
        with then:
            old = code.load(builder.select(is_started, initial, to), vector, align=size)
            new, there = builder.fadd(old, total), code.load(to, vector, align=size)
            code.store(select_from(code, overlap, new, there), to, align=size)
        with otherwise:

            def add(q, _):
                address = code.offset(to, q, step)
                start = builder.select(is_started, code.offset(initial, q, word(size)), address)
                old = code.load(start, vector.element, align=size)
                lane = builder.extract_element(total, q)
                code.store(builder.fadd(old, lane), address, align=size)
                return []

            code.for_loop(overlap, word(vector.count), word(1), [], add)
