"""o[b, w] += sum_v h[b, v] @ W[inputIdx[b, v], outputIdx[b, w]]"""

import numpy as np

from blocksparse_ops.kernels.numba.check import check_index, check_sizes, check_triples
from blocksparse_ops.kernels.numba.choose import sorting_pays
from blocksparse_ops.kernels.numba.compile import kernel
from blocksparse_ops.kernels.numba.plan import make_plan
from blocksparse_ops.kernels.numba.tile import accumulate, add_row
from blocksparse_ops.signature import GEMV, SOUND

AGREEMENTS = GEMV.agreements


@kernel
def check(o, W, h, inputIdx, outputIdx):
    """Return a record of what is wrong, and the indices, flat and counted from the start."""
    inputs = outputs = np.empty(0, np.int64)
    sizes = o.shape + W.shape + h.shape + inputIdx.shape + outputIdx.shape
    fault = check_sizes(sizes, AGREEMENTS)
    if fault[0] == SOUND:
        fault = check_triples(h.shape[0], h.shape[1], o.shape[1])
    if fault[0] == SOUND:
        fault, inputs = check_index(inputIdx, 3, W.shape[0])
    if fault[0] == SOUND:
        fault, outputs = check_index(outputIdx, 4, W.shape[1])
    return fault, inputs, outputs


@kernel
def run(out, W, h, inputIdx, outputIdx):
    """Add to `out`, which holds the initial values; the indices are flat and checked."""
    triples = inputIdx.size * out.shape[1]
    if sorting_pays(triples, W.shape[0], W.shape[1]):
        run_planned(out, W, h, inputIdx, outputIdx)
    else:
        run_direct(out, W, h, inputIdx, outputIdx)


@kernel
def run_planned(out, W, h, inputIdx, outputIdx):
    """Block by block, so that each is read once for all the rows that use it."""
    inputs, outputs = h.shape[1], out.shape[1]
    input_row, output_row = make_plan(inputIdx, outputIdx, inputs, outputs, W.shape[0], W.shape[1])
    sums = np.empty(W.shape[3], W.dtype)
    for t in range(input_row.size):
        left, right = input_row[t], output_row[t]
        sums[:] = 0
        accumulate(sums, h[left // inputs, left % inputs], W[inputIdx[left], outputIdx[right]])
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
