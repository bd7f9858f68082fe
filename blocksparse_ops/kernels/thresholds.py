"""The measured thresholds between kernel paths."""

# With fewer multiplications than this, a thread costs more than it gains: with blocks of 32 x 32,
# two threads took 1.3 times as long as one at 2**15 multiplications in all, 0.97 times at 2**18,
# 0.9 times at 2**19.
PRODUCTS_OF_A_THREAD = 1 << 18

# Numba's plain loops go block by block from this many triples a block in use on; below, each output
# row is summed by itself. With blocks of 8 to 256 and rows in random order, block by block took
# 0.93 to 1.02 of the time at 1 triple a block, 0.58 to 0.87 at 2, 0.34 to 0.59 at 8.
PLANNED_REUSE = 2
