"""Graph rewrites for the block-sparse ops, in the order in which they run.

1. ``local_scan_sparse_block_outer_zeros`` (`scan`), at 0.06: zeros that an outer starts from
   are made inside the loop again, right after PyTensor has pushed them out of it at 0.05.
2. ``local_gathered_einsum`` (`gathered_einsum`), at 0.07: an einsum of blocks that are gathered,
   and its gradient, are the products that they are made of. Before 0.1, where PyTensor 3.0 takes
   the sizes of a result from what it would compute it by, and before 1, where it brings products,
   however they were written, into one form; it does the same to an einsum, but at 2, where that
   has passed, and not to gradients. This and those up to 4 in modes that work in place; in JAX,
   where a gather is all that the ops make of few bytes, their twins ``..._in_jax`` see to many.
3. ``local_gathered_product``, ``local_gathered_sum`` (`gathered`), at 1.52: a sum of products with
   gathered blocks is the op; the second where C++ is compiled, as Numba fuses some. After 1, where
   the forms of it have become one; before 1.7 and 2, where PyTensor gives products and gathers
   others; and before what follows here, which then sees a product of ours.
4. ``local_gathered_gradient``, ``local_gathered_gradient_in_rows`` (`gathered_gradient`), at 1.53:
   outer products that are written into gathered blocks of zeros are an outer. After 1.51, where
   zeros are allocations; after the one before, for a gradient is left as it is where the gather
   is; and before the next, for the same reason.
5. ``local_sparse_block_outer_norm`` (`norm`), at 1.54: the norm of a gradient is computed from the
   blocks in use, so that the gradient has a use less. Before the next, which merges a gradient
   that has but one; not for array libraries, in which no size depends on values.
6. ``local_sparse_block_gemv_bias`` (`bias`), at 1.55: an addend of a product becomes what the
   product starts from. After 1.51, where PyTensor has turned all zeros into allocations that
   can be recognised; before 2, where it begins to specialise, and before 49, where fusion
   hides additions.
7. ``local_sparse_block_outer_update`` (`update`, `linear`, `sums`), at 1.55: the outer products of
   a linear form are added to the rest of it, so that a gradient step touches only the blocks in
   use. There for the same reasons. Each of those from 1.52 on runs to a fixpoint, since one merge
   can enable another.
8. ``local_full_gemv``, ``local_full_outer`` (`full`), at 1.57: where constants say that every
   example uses every block, and blocks are small, a dense product. After the merges, and before
   1.7, where PyTensor sees to dots.
9. ``local_scan_sparse_block_outer_state`` (`scan`), at 1.615: a loop that sums outers keeps one
   state of the sum. After 1.612, where PyTensor decides how many states to keep, and before
   2, where the uses of the last one take other forms.
10. ``local_update_blocks`` (`step`), at 49.1: what reads blocks of a `BlockGradient` from some
    arrays, computes elementwise and writes into such blocks is one op, which goes over them once.
    After 49, where PyTensor fuses elementwise ops, and before 100, where it has them gather.
11. ``local_inplace_sparse_block_outer_in_part`` (`inplace`), at 50.05: outers that are written into
    a part of an array become one op that adds to that part in place. Before 50.1, where PyTensor
    writes into parts in place.
12. ``local_sparse_block_gemv_of_repeated_zero`` (`start`), at 50.15: a product of zeros starts
    from a view of one. Before the next, which would have it write and read them all, and only
    where that runs.
13. ``local_inplace_sparse_block_gemv``, ``local_inplace_sparse_block_outer`` (`inplace`) and
    ``local_inplace_update_blocks`` (`step`), at 50.2: the ops become their in-place twins where
    the destroy handler allows. After 49.5, where the destroy handler is added; before 50.5, where
    PyTensor makes elementwise ops in place: they could take the very buffer that an outer product
    would otherwise update, and it is weights.
14. ``block_sparse_raise_first`` (`order`), at 99.9: what may raise runs before what writes into a
    shared variable. After what works in place; before 100, where PyTensor fuses elementwise ops
    with others. It looks at a graph once.

PyTensor runs all of these again on the graph inside a Scan. All carry the tag ``blocksparse``, so
that ``mode.excluding("blocksparse")`` turns them off, and their own name, which turns off one.

Each of them ends, for it gives back a graph only if there is less of what it is for:

1. zeros that an outer in a loop takes from outside;
2. einsums of gathered blocks;
3. gathers of blocks for products;
4. writes of outer products into gathered blocks;
5. uses of a gradient;
6. addends of the sum in which a product stands;
7. outers that start from zeros, or, as many as before, elementwise nodes above them;
8. products of all blocks;
9. loops that keep more than one state of a sum of outers;
10. reads and writes of blocks;
11. outers that are written into a part;
12. products of zeros that are written;
13. ops that are not in place.

Besides, without that tag, on JAX, at 0.01, ``local_block_zeros_of_known_sizes`` (`sizes`) has zeros
read their sizes off arrays, before PyTensor computes sizes from others. It optimizes nothing.
"""

from blocksparse_ops.rewrites import bias as bias
from blocksparse_ops.rewrites import full as full
from blocksparse_ops.rewrites import gathered as gathered
from blocksparse_ops.rewrites import gathered_einsum as gathered_einsum
from blocksparse_ops.rewrites import gathered_gradient as gathered_gradient
from blocksparse_ops.rewrites import inplace as inplace
from blocksparse_ops.rewrites import norm as norm
from blocksparse_ops.rewrites import order as order
from blocksparse_ops.rewrites import scan as scan
from blocksparse_ops.rewrites import sizes as sizes
from blocksparse_ops.rewrites import start as start
from blocksparse_ops.rewrites import step as step
from blocksparse_ops.rewrites import update as update
