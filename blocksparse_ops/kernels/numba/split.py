"""Which part of the work is a thread's. A sum is never cut, so the parts do not change its bits."""

from collections import namedtuple

from blocksparse_ops.kernels.numba.compile import kernel

# The part [first, last) of a whole.
Share = namedtuple("Share", "first last")


@kernel
def share_start(total, thread, threads):
    return total // threads * thread + min(total % threads, thread)


@kernel
def share_of(total, thread, threads):
    """What one of several threads has. Parts differ by one at most."""
    return Share(share_start(total, thread, threads), share_start(total, thread + 1, threads))


@kernel
def panels_of_share(share, panels, before, triples):
    """The panels of a block that a thread has, of `panels` panels.

    A panel weighs as much as its block has triples, `before` of which stand before its own, and
    belongs to the thread in whose share of all it starts.
    """
    return Share(
        first_from(share.first - before * panels, panels, triples),
        first_from(share.last - before * panels, panels, triples),
    )


@kernel
def first_from(position, panels, triples):
    if position <= 0:
        return 0
    # Most blocks are one thread's: no need to divide.
    return panels if position >= panels * triples else (position + triples - 1) // triples
