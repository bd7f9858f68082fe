"""The measured thresholds between kernel paths, for the C and the Numba kernels alike."""

# Sorting the triples by block pays from this many triples a block on; below, each output row
# is summed by itself.
PLANNED_REUSE = 2
