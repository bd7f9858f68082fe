"""Which path a call takes, and how many threads. kernels/thresholds.py sets the thresholds."""

from blocksparse_ops.kernels.numba.compile import kernel
from blocksparse_ops.kernels.numba.memory import word_at
from blocksparse_ops.kernels.thresholds import PRODUCTS_OF_A_THREAD


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

    Then every block has the rows of all examples as it is, and sorting would only take time. If
    not, to go block by block pays always: blocks are then read in the order in which they lie.
    """
    return repeats(p.input, p.batch, p.inputs) and repeats(p.output, p.batch, p.outputs)


@kernel
def threads_for(triples, products_of_a_triple, most):
    # In floating point: the product may overflow.
    worth = float(triples) * float(products_of_a_triple) / PRODUCTS_OF_A_THREAD
    return 1 if worth < 2 else int(min(worth, most))
