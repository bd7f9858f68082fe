"""Which path a call takes."""

from blocksparse_ops.kernels.numba.compile import kernel
from blocksparse_ops.kernels.thresholds import PLANNED_REUSE
from blocksparse_ops.signature import LARGEST


@kernel
def sorting_pays(triples, iBlocks, oBlocks):
    """Whether to sort: all blocks, or a triple for each, bound the number of blocks in use."""
    if oBlocks > 0 and iBlocks > LARGEST // oBlocks:
        return False
    return triples // PLANNED_REUSE >= iBlocks * oBlocks
