"""Which path a call takes, and how many threads. kernels/thresholds.py sets the thresholds."""

from blocksparse_ops.kernels.numba.compile import kernel
from blocksparse_ops.kernels.thresholds import PRODUCTS_OF_A_THREAD


@kernel
def repeats(index, batch):
    """Whether each row equals the one before it."""
    window = index.size // max(batch, 1)
    at = window
    while at < index.size and index[at] == index[at - window]:
        at += 1
    return at == index.size


@kernel
def pattern_is_shared(indices, batch):
    """Whether all examples use the same blocks.

    Then every block has the rows of all examples as it is, and sorting would only take time. If
    not, to go block by block pays always: blocks are then read in the order in which they lie.
    """
    return repeats(indices.input, batch) and repeats(indices.output, batch)


@kernel
def threads_for(triples, products_of_a_triple, most):
    # In floating point: the product may overflow.
    worth = float(triples) * float(products_of_a_triple) / PRODUCTS_OF_A_THREAD
    return 1 if worth < 2 else int(min(worth, most))
