"""Graph rewrites for the block-sparse ops, in the order in which they run.

1. ``local_inplace_sparse_block_gemv``, ``local_inplace_sparse_block_outer`` (`inplace`), at 50.2:
   the ops become their in-place twins where the destroy handler allows. After 49.5, where the
   destroy handler is added; before 50.5, where PyTensor makes elementwise ops in place: they
   could take the very buffer that an outer product would otherwise update, and it is weights.

All carry the tag ``blocksparse``, so that ``mode.excluding("blocksparse")`` turns them off, and
their own name, which turns off one.
"""

from blocksparse_ops.rewrites import inplace as inplace
