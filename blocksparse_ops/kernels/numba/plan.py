"""The (example, input, output) triples sorted by the block that they use."""

import numpy as np

from blocksparse_ops.kernels.numba.compile import kernel


@kernel
def counts_to_starts(counts):
    """Turn counts into the position at which each key's entries start."""
    total = 0
    for key in range(counts.size):
        here = counts[key]
        counts[key] = total
        total += here


@kernel
def sort_rows(blocks_of_rows, blocks):
    """Rows in the order of their block, equal blocks in the order in which they stand."""
    starts = np.zeros(blocks, np.int64)
    order = np.empty(blocks_of_rows.size, np.int64)
    for block in blocks_of_rows:
        starts[block] += 1
    counts_to_starts(starts)
    for row in range(blocks_of_rows.size):
        block = blocks_of_rows[row]
        order[starts[block]] = row
        starts[block] += 1
    return order


@kernel
def make_plan(inputIdx, outputIdx, inputs, outputs, iBlocks, oBlocks):
    """Sort the triples by output block, then by input block.

    Returns
    -------
    input_row, output_row : arrays
        The rows that each triple joins: a row is example * window + position.
    """
    triples = inputIdx.size * outputs
    input_row = np.empty(triples, np.int64)
    output_row = np.empty(triples, np.int64)
    # A counting sort in two passes, by input block and then, stably, by output block.
    starts = np.zeros(oBlocks, np.int64)
    for block in outputIdx:
        starts[block] += inputs
    counts_to_starts(starts)
    for left in sort_rows(inputIdx, iBlocks):
        first = left // inputs * outputs
        for right in range(first, first + outputs):
            block = outputIdx[right]
            input_row[starts[block]] = left
            output_row[starts[block]] = right
            starts[block] += 1
    return input_row, output_row
