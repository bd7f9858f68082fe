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
def sort_triples(inputIdx, outputIdx, inputs, outputs, iBlocks, oBlocks):
    """A counting sort in two passes, by input block and then, stably, by output block."""
    input_row = np.empty(inputIdx.size * outputs, np.int64)
    output_row = np.empty(inputIdx.size * outputs, np.int64)
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


@kernel
def make_plan(inputIdx, outputIdx, inputs, outputs, iBlocks, oBlocks):
    """Group the triples by block, in the order of the output blocks.

    Returns
    -------
    start : array
        Group g joins rows input_row[t] and output_row[t] for start[g] <= t < start[g + 1].
    input_row, output_row : arrays
        A row is an example and a position in its window, example * window + position.
    """
    input_row, output_row = sort_triples(inputIdx, outputIdx, inputs, outputs, iBlocks, oBlocks)
    start = np.empty(input_row.size + 1, np.int64)
    groups = 0
    i = j = -1
    for t in range(input_row.size):
        if inputIdx[input_row[t]] != i or outputIdx[output_row[t]] != j:
            i, j = inputIdx[input_row[t]], outputIdx[output_row[t]]
            start[groups] = t
            groups += 1
    start[groups] = input_row.size
    return start[: groups + 1], input_row, output_row
