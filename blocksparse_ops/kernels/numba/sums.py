"""Products of a row with some columns of a small block, summed in registers.

An element is summed in chains, by k modulo their number (of a remainder the last k in the last
chain), which are joined by halves. They are the lanes of one vector where columns are contiguous,
and a vector each where rows are: so both layouts give the same bits. For that, products and sums
are not joined to one step either.
"""

from llvmlite import ir

from blocksparse_ops.kernels.numba.vector import (
    VECTOR_BYTES,
    bytes_of,
    full_lanes,
    llvm_scalar,
    word,
)


def most_chains(scalar):
    """Of a depth of 1, and of no other, there is one."""
    return max(min(VECTOR_BYTES, 32) // bytes_of(scalar), 2)


# So many sums are in registers.
MOST_SUMS = 8


def vectors_in_registers(sums):
    """How many vectors of columns are, of so many sums each."""
    return max(MOST_SUMS // sums, 1)


def most_at_once(scalar, lanes):
    """How many vectors of columns are added to at once; there is but one that is not full."""
    return 4 if 1 < lanes == full_lanes(scalar) else 1


class Sums:
    """Code that sums products in `chains` with some vectors of columns, of `lanes` each.

    What is summed is held in vectors of `type`.
    """

    def __init__(self, code, scalar, chains, lanes, vectors):
        self.code, self.builder = code, code.builder
        self.scalar, self.size = llvm_scalar(scalar), bytes_of(scalar)
        self.chains, self.most_chains = chains, most_chains(scalar)
        self.lanes, self.vectors = lanes, vectors
        self.sums_of_vector = self.sums_of(chains, lanes)
        self.type = ir.VectorType(self.scalar, chains * lanes // self.sums_of_vector)

    @staticmethod
    def sums_of(chains, lanes):
        """How many sums a vector of columns has."""
        raise NotImplementedError

    @classmethod
    def vectors_at_once(cls, scalar, chains, lanes):
        """How many vectors of columns fit into registers."""
        sums = cls.sums_of(chains, lanes)
        return min(most_at_once(scalar, lanes), vectors_in_registers(sums))

    def start(self):
        """The values of no products."""
        return [ir.Constant(self.type, None)] * (self.sums_of_vector * self.vectors)

    def accumulate(self, sums, left, left_step, block, step, depth):
        """Add left[k] * block[k][.] for k < depth. Steps are in bytes."""
        raise NotImplementedError

    def totals(self, sums):
        """The sums of all columns, as vectors."""
        count = self.sums_of_vector
        return [self._join(sums[first : first + count]) for first in range(0, len(sums), count)]

    def _join(self, sums):
        """Those of one vector of columns."""
        raise NotImplementedError

    def _chains_of(self, depth, sums, add, add_last):
        """Add products k to k + chains, and at last those from depth - chains on."""
        if self.chains < self.most_chains:  # the depth is less than twice as much
            k, sums = word(self.chains), add(word(0), sums)
        else:
            end = self.builder.sub(depth, word(self.chains - 1))
            k, sums = self.code.for_loop(word(0), end, word(self.chains), sums, add, is_short=True)
        some_left = self.builder.icmp_signed("<", k, depth)
        return self.code.when(some_left, sums, lambda sums: add_last(k, sums))

    def _product(self, one, other, total):
        return self.builder.fadd(total, self.builder.fmul(one, other))


class RowSums(Sums):
    """Of blocks whose rows are contiguous: vectors of columns for each chain."""

    @staticmethod
    def sums_of(chains, lanes):
        return chains

    def accumulate(self, sums, left, left_step, block, step, depth):
        def add(chain, k, sums):
            at = self.code.load(self.code.offset(left, k, left_step), self.scalar, self.size)
            at, row = self.code.splat(at, self.type), self.code.offset(block, k, step)
            sums = list(sums)
            for place in range(chain, len(sums), self.chains):
                part = self.code.load(row, self.type, self.size)
                sums[place] = self._product(at, part, sums[place])
                row = self.builder.add(row, word(self.lanes * self.size))
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

    def _join(self, sums):
        while len(sums) > 1:
            half = len(sums) // 2
            sums = [self.builder.fadd(sums[k], sums[half + k]) for k in range(half)]
        return sums[0]


class ColumnSums(Sums):
    """Of blocks whose columns are contiguous, and a contiguous row: a vector for each column."""

    @staticmethod
    def sums_of(chains, lanes):
        return lanes

    def accumulate(self, sums, left, left_step, block, step, depth):
        columns = [self.code.offset(block, q, step) for q in range(self.vectors * self.lanes)]
        return self.accumulate_columns(sums, [left], columns, depth)

    def accumulate_columns(self, sums, lefts, columns, depth):
        """Add products with the same row for all columns, or with one for each."""

        def load(addresses, k):
            places = (self.code.offset(address, k, word(self.size)) for address in addresses)
            return [self.code.load(place, self.type, self.size) for place in places]

        def products(k, sums):
            rows = load(lefts, k) * (len(columns) // len(lefts))
            return [
                self._product(*factors, total)
                for *factors, total in zip(rows, load(columns, k), sums, strict=True)
            ]

        def last_products(k, sums):
            before = self.builder.sub(depth, word(self.chains))
            done = self.builder.sub(k, before)
            new = products(before, sums)
            return [select_from(self.code, done, *pair) for pair in zip(new, sums, strict=True)]

        if self.chains == 1:  # the depth is 1
            return products(word(0), sums)
        return self._chains_of(depth, sums, products, last_products)

    def _join(self, sums):
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


def from_lane(code, first, sums):
    """Sums to add, of which the lanes before number `first`, if there is one, change nothing.

    What is added is selected, not what is written: LLVM would make that a masked store, which is
    slow on AMD's processors.
    """
    if first is None:
        return sums
    return select_from(code, first, sums, ir.Constant(sums.type, [-0.0] * sums.type.count))


def add_lanes(code, total, overlap, start, to, size):
    """to[q] += total[q] for all lanes q from number `overlap` on, if there is one.

    `start` is whether there are initial values, and a vector of these: then to[q] = initial[q] +
    total[q], of all lanes.
    """
    is_given, initial = start
    old, more = code.when(
        code.builder.not_(is_given),
        [initial, total],
        lambda _: [code.load(to, total.type, align=size), from_lane(code, overlap, total)],
    )
    code.store(code.builder.fadd(old, more), to, align=size)
