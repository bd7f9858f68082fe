"""o[b, w] += sum_v h[b, v] @ W[inputIdx[b, v], outputIdx[b, w]]"""

import numpy as np

from blocksparse_ops.kernels.numba.check import check, flat_from_start
from blocksparse_ops.kernels.numba.choose import going_by_block_pays
from blocksparse_ops.kernels.numba.compile import kernel
from blocksparse_ops.kernels.numba.plan import make_plan
from blocksparse_ops.kernels.numba.tile import accumulate, add_row
from blocksparse_ops.signature import GEMV

AGREEMENTS = GEMV.agreements


@kernel
def check_gemv(o, W, h, inputIdx, outputIdx):
    """Return a record of what is wrong."""
    sizes = o.shape + W.shape + h.shape + inputIdx.shape + outputIdx.shape
    triples = (h.shape[0], h.shape[1], o.shape[1])
    return check(sizes, AGREEMENTS, triples, inputIdx, W.shape[0], outputIdx, W.shape[1])


@kernel
def run_gemv(out, W, h, inputIdx, outputIdx):
    """Add to `out`, which holds the initial values; all has been checked."""
    iBlocks, oBlocks = W.shape[0], W.shape[1]
    inputIdx = flat_from_start(inputIdx, iBlocks)
    outputIdx = flat_from_start(outputIdx, oBlocks)
    plan = make_plan(inputIdx, outputIdx, h.shape[1], out.shape[1], iBlocks, oBlocks)
    start, input_row, output_row = plan
    if going_by_block_pays(input_row.size, start.size - 1):
        run_planned(out, W, h, inputIdx, outputIdx, start, input_row, output_row)
    else:
        run_direct(out, W, h, inputIdx, outputIdx)


@kernel
def run_planned(out, W, h, inputIdx, outputIdx, start, input_row, output_row):
    """Block by block, so that each is read once for all the rows that use it."""
    inputs, outputs = h.shape[1], out.shape[1]
    sums = np.empty(W.shape[3], W.dtype)
    for g in range(start.size - 1):
        block = W[inputIdx[input_row[start[g]]], outputIdx[output_row[start[g]]]]
        for t in range(start[g], start[g + 1]):
            left, right = input_row[t], output_row[t]
            sums[:] = 0
            accumulate(sums, h[left // inputs, left % inputs], block)
            add_row(out[right // outputs, right % outputs], sums)


@kernel
def run_direct(out, W, h, inputIdx, outputIdx):
    """Output row by output row, the sum over the whole input window before it is added."""
    batch, inputs, outputs = h.shape[0], h.shape[1], out.shape[1]
    sums = np.empty(W.shape[3], W.dtype)
    for b in range(batch):
        for w in range(outputs):
            sums[:] = 0
            for v in range(inputs):
                block = W[inputIdx[b * inputs + v], outputIdx[b * outputs + w]]
                accumulate(sums, h[b, v], block)
            add_row(out[b, w], sums)
