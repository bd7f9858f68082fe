"""Vectors as LLVM knows them, as wide as the host's registers, and words to write code in."""

from llvmlite import ir
from numba.core.registry import cpu_target
from numba.core.types import float32

WORD = ir.IntType(64)
WORD_BYTES = 8
FLAG = ir.IntType(32)
BYTE = ir.IntType(8)


def host_features():
    """What Numba compiles for: its own settings and the processor have a say."""
    listed = cpu_target.target_context.codegen().magic_tuple()[2]
    return {name[1:] for name in listed.split(",") if name.startswith("+")}


def vector_bytes(features):
    """The size of a register, or 4 where no vectors are known: one lane of the smallest scalar."""
    sizes = {"avx512f": 64, "avx": 32, "sse2": 16, "neon": 16}
    return max((sizes[name] for name in features & sizes.keys()), default=4)


FEATURES = host_features()
VECTOR_BYTES = vector_bytes(FEATURES)

# A file of 32 vector registers, not of 16.
MANY_REGISTERS = bool(FEATURES & {"avx512f", "neon"})


def llvm_scalar(scalar):
    """The LLVM type of a Numba float."""
    return ir.FloatType() if scalar == float32 else ir.DoubleType()


def bytes_of(scalar):
    """The size of a Numba float."""
    return scalar.bitwidth // 8


def full_lanes(scalar):
    """How many of them a register holds."""
    return max(VECTOR_BYTES // bytes_of(scalar), 1)


def word(value):
    """A 64-bit constant."""
    return ir.Constant(WORD, value)


def not_unrolled(module):
    """What keeps a loop as it is: LLVM knows it by a node that begins with itself."""
    node = module.add_metadata([ir.Constant(FLAG, len(module.metadata))])
    node.operands = (node, module.add_metadata(["llvm.loop.unroll.disable"]))
    return node


class Code:
    """LLVM code as it is written, on addresses that are 64-bit numbers."""

    def __init__(self, builder):
        self.builder = builder

    def load(self, address, llvm_type, align):
        loaded = self.builder.load(self._pointer(address, llvm_type))
        loaded.align = align
        return loaded

    def store(self, value, address, align):
        stored = self.builder.store(value, self._pointer(address, value.type))
        stored.align = align

    def _pointer(self, address, llvm_type):
        return self.builder.inttoptr(address, llvm_type.as_pointer())

    def offset(self, address, count, step):
        """address + count * step, the count a number of Python's or a word"""
        count = word(count) if isinstance(count, int) else count
        return self.builder.add(address, self.builder.mul(count, step))

    def splat(self, value, vector):
        """The same value in all lanes."""
        single = self.builder.insert_element(
            ir.Constant(vector, ir.Undefined), value, ir.Constant(FLAG, 0)
        )
        return self.shuffle(single, single, [0] * vector.count)

    def shuffle(self, one, other, lanes):
        """The lanes of both, numbered one after the other, that are listed."""
        mask = ir.Constant(ir.VectorType(FLAG, len(lanes)), lanes)
        return self.builder.shuffle_vector(one, other, mask)

    def multiply_add(self, one, other, total):
        """one * other + total, in one step where the host has one."""
        product = self.builder.fmul(one, other, flags=("contract",))
        return self.builder.fadd(product, total, flags=("contract",))

    def smaller(self, one, other):
        return self.builder.select(self.builder.icmp_signed("<", one, other), one, other)

    def prefetch(self, address, write, locality):
        function_type = ir.FunctionType(ir.VoidType(), [BYTE.as_pointer(), FLAG, FLAG, FLAG])
        name = "llvm.prefetch.p0"
        function = self.builder.module.globals.get(name)
        function = function or ir.Function(self.builder.module, function_type, name)
        flags = [ir.Constant(FLAG, value) for value in (write, locality, 1)]
        self.builder.call(function, [self._pointer(address, BYTE), *flags])

    def while_loop(self, values, condition, body, is_short=False):
        """Values turned into body(*values) for as long as condition(*values) holds.

        If it is mostly a few times, `is_short` keeps LLVM from unrolling the loop.
        """
        before = self.builder.block
        head, inside, after = (self.builder.append_basic_block() for _ in range(3))
        self.builder.branch(head)
        self.builder.position_at_end(head)
        merged = [self.builder.phi(value.type) for value in values]
        for phi, value in zip(merged, values, strict=True):
            phi.add_incoming(value, before)
        self.builder.cbranch(condition(*merged), inside, after)
        self.builder.position_at_end(inside)
        results = body(*merged)
        for phi, value in zip(merged, results, strict=True):
            phi.add_incoming(value, self.builder.block)
        back = self.builder.branch(head)
        if is_short:
            back.set_metadata("llvm.loop", not_unrolled(self.builder.module))
        self.builder.position_at_end(after)
        return merged

    def for_loop(self, start, end, step, values, body, is_short=False):
        """Values turned into body(k, values) for k from start to end by step; k, and the values."""

        def condition(k, *_):
            return self.builder.icmp_signed("<", k, end)

        def turn(k, *values):
            results = body(k, list(values))
            return [self.builder.add(k, step), *results]

        k, *results = self.while_loop([start, *values], condition, turn, is_short)
        return k, results

    def when(self, condition, values, body):
        """body(values) if the condition holds, else the values as they are."""
        before = self.builder.block
        with self.builder.if_then(condition):
            results = body(list(values))
            inside = self.builder.block
        merged = [self.builder.phi(value.type) for value in values]
        for phi, value, result in zip(merged, values, results, strict=True):
            phi.add_incoming(value, before)
            phi.add_incoming(result, inside)
        return merged
