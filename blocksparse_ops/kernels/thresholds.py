"""The measured thresholds between kernel paths."""

# With fewer multiplications than this, a thread costs more than it gains: with blocks of 32 x 32,
# two threads took 1.3 times as long as one at 2**15 multiplications in all, 0.97 times at 2**18,
# 0.9 times at 2**19.
PRODUCTS_OF_A_THREAD = 1 << 18
