"""The measured thresholds between kernel paths."""

# With fewer multiplications than this, a thread costs more than it gains: with blocks of 32 x 32,
# two threads took 1.3 times as long as one at 2**15 multiplications in all, 0.97 times at 2**18,
# 0.9 times at 2**19.
PRODUCTS_OF_A_THREAD = 1 << 18

# To sort a triple takes some 20 ns, which pays where its block is then read once for several rows.
# Blocks of up to so many elements are worked on as the examples stand: sorted, 8 x 8 took 1.7 to
# 3.5 times as long, 16 x 16 0.9 to 3, 24 x 24 0.5 to 1.8, 32 x 32 0.3 to 0.9 (10,000 examples of
# one block each, of 100 to 100,000). So are blocks of one row or one column, of any length: there
# is no more reuse in a block than in what it is multiplied with, and sorted they took 1.3 to 7
# times as long.
DIRECT_ELEMENTS = 256
DIRECT_THICKNESS = 1

# In Numba, of twice as many where each window has one place: sorted, 16 x 32, 32 x 16, 8 x 64 and
# 64 x 8 took 1.1 to 2.9 times as long, 32 x 32 0.8 to 1.8 times. In C++ 0.7 to 1.6 times, and of
# longer windows, summed in registers by the sorted path as well, 0.6 to 2.
DIRECT_ELEMENTS_OF_ONE = 512

# What JAX may gather at once: more leaves the cache, and steps cost less than that.
GATHERED_BYTES = 1 << 24

# Of more, dots as XLA makes them took 1.4 to 16 times as long as the op, with gradients 1.6 to 15
# times, where blocks had so many elements and so many uses each (10,000 examples, blocks of 24 x 24
# to 64 x 64); of 16 x 16 and less 0.5 to 5 times, with less uses 0.4 to 5 times. Products and sums
# took 1.05 to 5 times as long wherever a block had a use, 0.6 to 1.4 times where it had not. On a
# GPU dots took 0.9 to 1.05 times as long, with gradients 0.6 to 1, and products and sums 0.9 to
# 1.05 and 1 to 2.5 times.
DOT_ELEMENTS = 512
DOT_USES = 8
SUM_USES = 1
