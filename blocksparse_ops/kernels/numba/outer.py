"""o[xIdx[b, v], yIdx[b, w]] += alpha * outer(x[b, v], y[b, w])"""

import numpy as np

from blocksparse_ops.kernels.numba.check import check_index, check_sizes, check_triples
from blocksparse_ops.kernels.numba.compile import kernel
from blocksparse_ops.kernels.numba.plan import make_plan
from blocksparse_ops.kernels.numba.tile import add_outer
from blocksparse_ops.signature import OUTER, SOUND

AGREEMENTS = OUTER.agreements


@kernel
def check(o, x, y, xIdx, yIdx):
    """Return a record of what is wrong, and the indices, flat and counted from the start."""
    inputs = outputs = np.empty(0, np.int64)
    sizes = o.shape + x.shape + y.shape + xIdx.shape + yIdx.shape
    fault = check_sizes(sizes, AGREEMENTS)
    if fault[0] == SOUND:
        fault = check_triples(x.shape[0], x.shape[1], y.shape[1])
    if fault[0] == SOUND:
        fault, inputs = check_index(xIdx, 3, o.shape[0])
    if fault[0] == SOUND:
        fault, outputs = check_index(yIdx, 4, o.shape[1])
    return fault, inputs, outputs


@kernel
def run(out, x, y, xIdx, yIdx, alpha):
    """Add to `out`, which holds the initial values, block by block."""
    inputs, outputs = x.shape[1], y.shape[1]
    x_row, y_row = make_plan(xIdx, yIdx, inputs, outputs, out.shape[0], out.shape[1])
    for t in range(x_row.size):
        left, right = x_row[t], y_row[t]
        add_outer(
            out[xIdx[left], yIdx[right]],
            x[left // inputs, left % inputs],
            y[right // outputs, right % outputs],
            alpha,
        )
