"""The roofline: the rates of a large matrix product, of a streaming read, and of a fill.

And what it takes to read the blocks in use where they lie, which no stream does.
"""

import numba
import numpy as np
from memory import settled
from threadpoolctl import ThreadpoolController


# Reassociation lets the compiler use enough accumulators to saturate the loads. As two streams
# it is within a tenth of the best of eight loops in C (one to sixteen streams of 64-byte
# vectors, with and without prefetches) at each size from 2 to 64 MiB; as one stream it is not.
@numba.njit(fastmath=True, nogil=True, cache=True)
def read(buffer):
    half = len(buffer) // 2
    first = second = buffer[0]
    for k in range(half):
        first += buffer[k]
        second += buffer[half + k]
    return first + second


@numba.njit(fastmath=True, nogil=True, cache=True)
def read_blocks(blocks, numbers):
    total = blocks[0, 0]
    for number in numbers:
        for k in range(blocks.shape[1]):
            total += blocks[number, k]
    return total


class Product:
    """A square matrix product, by NumPy's BLAS on so many threads."""

    def __init__(self, dtype, size, threads=1):
        rng = np.random.default_rng(0)
        self.size = size
        self.threads = threads
        self.left, self.right = rng.normal(size=(2, size, size)).astype(dtype)
        self.out = np.empty_like(self.left)
        self.blas = ThreadpoolController().select(user_api="blas")

    @property
    def multiply_adds(self):
        return self.size**3

    def __call__(self):
        with self.blas.limit(limits=self.threads):
            np.matmul(self.left, self.right, out=self.out)


def streaming_read(count, dtype):
    """A call that reads `count` contiguous bytes."""
    buffer = settled(np.ones(max(1, count // np.dtype(dtype).itemsize), dtype))
    read(buffer)  # compiles it, or loads it
    return lambda: read(buffer)


def scattered_read(problem):
    """A call that reads each block in use once, in the order in which the examples name them."""
    blocks = problem.W.reshape(-1, problem.block)
    numbers, first = np.unique(problem.numbers, return_index=True)
    numbers = numbers[np.argsort(first)]
    read_blocks(blocks, numbers)
    return lambda: read_blocks(blocks, numbers)


def fresh_fill(shape, dtype):
    """A call that allocates an array and fills it."""
    return lambda: np.full(shape, 0, dtype)


def limit_runs(problem, quantity, product):
    """What must be timed in the same rounds to know the limit."""
    _, count = problem.work(quantity)
    runs = {
        "product": product,
        "read": streaming_read(count, problem.dtype),
        "scattered read": scattered_read(problem),
    }
    if quantity == "outer_into_zeros":
        runs["fill"] = fresh_fill(problem.W.shape, problem.dtype)
    return runs


def limit(times, multiply_adds, product):
    """Which bound holds, and its seconds in each round."""
    compute = np.array(times["product"]) * (multiply_adds / product.multiply_adds)
    memory = np.array(times["read"])
    if np.median(compute) > np.median(memory):
        bound, series = "compute", compute
    else:
        bound, series = "memory", memory
    if "fill" in times:
        bound, series = f"fill, {bound}", series + times["fill"]
    return bound, series
