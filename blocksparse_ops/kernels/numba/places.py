"""The places of an input window that are not padded."""

from llvmlite import ir

from blocksparse_ops.kernels.numba.check import NO_BLOCK
from blocksparse_ops.kernels.numba.vector import WORD, WORD_BYTES, word

WORD_BITS = 64


class Places:
    """Code that looks at the places of an input window that are not padded.

    Of one example at a time: a bit a place, in some words. A branch for each place would be
    mispredicted.
    """

    def __init__(self, code, inputs, words):
        self.code, self.builder, self.inputs, self.words = code, code.builder, inputs, words

    def _word(self, first):
        """The address of the word that begins with the bit of a place."""
        position = self.builder.udiv(first, word(WORD_BITS))
        return self.code.offset(self.words, position, word(WORD_BYTES))

    def enter(self, blocks):
        """Look at the blocks of an example's window; returns whether all of it is padded."""
        builder, code = self.builder, self.code

        def look(first, any_named):
            count = code.smaller(builder.sub(self.inputs, first), word(WORD_BITS))
            start = code.offset(blocks, first, word(WORD_BYTES))

            def add_bit(k, named):
                block = code.load(code.offset(start, k, word(WORD_BYTES)), WORD, WORD_BYTES)
                bit = builder.zext(is_block(builder, block), WORD)
                return [builder.or_(*named, builder.shl(bit, k))]

            _, [named] = code.for_loop(word(0), count, word(1), [word(0)], add_bit)
            code.store(named, self._word(first), WORD_BYTES)
            return [builder.or_(*any_named, named)]

        _, [any_named] = code.for_loop(word(0), self.inputs, word(WORD_BITS), [word(0)], look)
        return builder.icmp_signed("==", any_named, word(0))

    def for_each(self, values, body):
        """Values turned into body(v, values) for all places that are not padded, in order."""
        builder, code = self.builder, self.code

        def some(first, values):
            left = code.load(self._word(first), WORD, WORD_BYTES)

            def one(left, *values):
                v = builder.add(first, builder.cttz(left, ir.Constant(ir.IntType(1), 1)))
                without = builder.and_(left, builder.sub(left, word(1)))
                return [without, *body(v, list(values))]

            _, *values = code.while_loop(
                [left, *values], lambda left, *_: builder.icmp_signed("!=", left, word(0)), one
            )
            return values

        return code.for_loop(word(0), self.inputs, word(WORD_BITS), values, some)[1]


def is_block(builder, number):
    """Whether a number counted from the start is a block's."""
    return builder.icmp_signed("!=", number, word(int(NO_BLOCK)))
