"""o[xIdx[b, v], yIdx[b, w]] += alpha * outer(x[b, v], y[b, w])"""

from blocksparse_ops.kernels.numba.check import check, flat_from_start
from blocksparse_ops.kernels.numba.compile import kernel
from blocksparse_ops.kernels.numba.plan import make_plan
from blocksparse_ops.kernels.numba.tile import add_outer
from blocksparse_ops.signature import OUTER

AGREEMENTS = OUTER.agreements


@kernel
def check_outer(o, x, y, xIdx, yIdx):
    """Return a record of what is wrong."""
    sizes = o.shape + x.shape + y.shape + xIdx.shape + yIdx.shape
    triples = (x.shape[0], x.shape[1], y.shape[1])
    return check(sizes, AGREEMENTS, triples, xIdx, o.shape[0], yIdx, o.shape[1])


@kernel
def run_outer(out, x, y, xIdx, yIdx, alpha):
    """Add to `out`, which holds the initial values, block by block; all has been checked."""
    inputs, outputs = x.shape[1], y.shape[1]
    iBlocks, oBlocks = out.shape[0], out.shape[1]
    xIdx = flat_from_start(xIdx, iBlocks)
    yIdx = flat_from_start(yIdx, oBlocks)
    start, x_row, y_row = make_plan(xIdx, yIdx, inputs, outputs, iBlocks, oBlocks)
    for g in range(start.size - 1):
        block = out[xIdx[x_row[start[g]]], yIdx[y_row[start[g]]]]
        for t in range(start[g], start[g + 1]):
            left, right = x_row[t], y_row[t]
            row = y[right // outputs, right % outputs]
            add_outer(block, x[left // inputs, left % inputs], row, alpha)
