"""Which path a call takes, and how many threads. kernels/thresholds.py sets the thresholds."""

from blocksparse_ops.kernels.numba.compile import kernel
from blocksparse_ops.kernels.numba.memory import word_at
from blocksparse_ops.kernels.thresholds import (
    DIRECT_ELEMENTS,
    DIRECT_ELEMENTS_OF_ONE,
    DIRECT_THICKNESS,
    PRODUCTS_OF_A_THREAD,
)


@kernel
def repeats(blocks, batch, window):
    """Whether each row of a table equals the one before it."""
    at = min(batch, 1) * window
    while at < batch * window and word_at(blocks, at) == word_at(blocks, at - window):
        at += 1
    return at == batch * window


@kernel
def pattern_is_shared(p):
    """Whether all examples use the same blocks.

    Every block in use then has all examples as its rows, and a plan would only cost time. Otherwise
    going block by block, in the order of memory, always pays.
    """
    if p.input_is_padded or p.output_is_padded:
        return False
    return repeats(p.input, p.batch, p.inputs) and repeats(p.output, p.batch, p.outputs)


@kernel
def threads_for(triples, products_of_a_triple, most):
    # In floating point: the product may overflow.
    worth = float(triples) * float(products_of_a_triple) / PRODUCTS_OF_A_THREAD
    return 1 if worth < 2 else int(min(worth, most))


@kernel
def is_direct(blocks, left, right):
    """Whether triples are worked on as the examples stand, by direct.py.

    Of an array of blocks, and of what stands at the input window and at the output window.
    """
    rows, columns = blocks.shape[2:]
    is_one = left.shape[1] == 1 and right.shape[1] == 1
    most = DIRECT_ELEMENTS_OF_ONE if is_one else DIRECT_ELEMENTS
    return rows * columns <= most or min(rows, columns) <= DIRECT_THICKNESS
