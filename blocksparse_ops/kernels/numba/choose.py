"""Which path a call takes."""

from blocksparse_ops.kernels.numba.compile import kernel
from blocksparse_ops.kernels.thresholds import PLANNED_REUSE


@kernel
def going_by_block_pays(triples, groups):
    """Whether blocks are used often enough: those that are not in use must not matter."""
    return triples // PLANNED_REUSE >= groups
