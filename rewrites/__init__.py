"""Graph rewrites for the block-sparse ops, in the order in which they run.

1. ``local_sparse_block_gemv_bias`` (`bias`), at 1.55: an addend of a product becomes what the
   product starts from. After 1.51, where PyTensor has turned all zeros into allocations that
   can be recognised; before 1.6, where it begins to move things between a Scan and its outside,
   and before elementwise fusion at 49 hides additions.
2. ``local_sparse_block_outer_update`` (`update`), at 1.55: the outer products of a linear form
   are added to the rest of it, so that a gradient step touches only the blocks in use. There
   for the same reasons; each of the two runs to a fixpoint, since one merge can enable another.
3. ``local_inplace_sparse_block_gemv``, ``local_inplace_sparse_block_outer`` (`inplace`), at 50.2:
   the ops become their in-place twins where the destroy handler allows. After 49.5, where the
   destroy handler is added; before 50.5, where PyTensor makes elementwise ops in place: they
   could take the very buffer that an outer product would otherwise update, and it is weights.

All carry the tag ``blocksparse``, so that ``mode.excluding("blocksparse")`` turns them off, and
their own name, which turns off one.
"""

from blocksparse_ops.rewrites import bias as bias
from blocksparse_ops.rewrites import inplace as inplace
from blocksparse_ops.rewrites import update as update
