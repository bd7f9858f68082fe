"""One row times one block, and adding the row of sums to the output."""

from blocksparse_ops.kernels.numba.compile import kernel


@kernel
def accumulate(sums, row, block):
    """sums[n] += sum_k row[k] * block[k, n], k in order whichever way the block lies."""
    if abs(block.strides[0]) >= abs(block.strides[1]):
        for k in range(row.size):
            for n in range(sums.size):
                sums[n] += row[k] * block[k, n]
    else:
        for n in range(sums.size):
            total = sums[n]
            for k in range(row.size):
                total += row[k] * block[k, n]
            sums[n] = total


@kernel
def add_row(out, sums):
    """out[n] += sums[n]"""
    for n in range(sums.size):
        out[n] += sums[n]


@kernel
def add_outer(block, x, y, alpha):
    """block[m, n] += alpha * x[m] * y[n]"""
    for m in range(x.size):
        scaled = alpha * x[m]
        for n in range(y.size):
            block[m, n] += scaled * y[n]
