"""Random problems for the Numba kernels, as they lie in memory, and what their outputs should be.

A call is a table of numbers, addresses among them, so that no layout is compiled anew.
"""

from collections import defaultdict
from dataclasses import dataclass
from functools import partial
from math import prod

import numba
import numpy as np
from cases import BLOCK_SIZES
from guarded import draw_strides

from blocksparse_ops.kernels import thresholds
from blocksparse_ops.kernels.numba.arrays import Array, IndexArray, Known
from blocksparse_ops.kernels.numba.check import OPS, Call
from blocksparse_ops.kernels.numba.compile import kernel
from blocksparse_ops.kernels.numba.perform import ADD_GEMV, ADD_OUTER, NEW_GEMV, NEW_OUTER
from blocksparse_ops.signature import GEMV, OUTER

# Around the widths of vectors and tiles, and the depth of a chunk.
COLUMNS = [*BLOCK_SIZES, 47, 100, 129, 520]
DEPTHS = [*COLUMNS[:-1], 255, 256, 257]
BLOCKS = [1, 1, 2, 2, 3, 4, 6, 70, 130]
BATCHES = [0, 1, 2, 3, 4, 5, 7, 9, 40, 130, 200]
INDEX_DTYPES = ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]
MOST_PRODUCTS, MOST_ELEMENTS = 400_000, 100_000
# Rows, columns and counts of blocks that no cache holds, which are prefetched.
LARGE = [(16, 16, 130, 70), (1, 520, 130, 33)]

# What a call makes: its output and its tables. Where Numba then makes an array of Python's of the
# output, an allocation that fails may end the process.
ALLOCATIONS = 3

# What an operand has axes for, by the letters of signature.py: the output first.
AXES = {
    "gemv": ("nwq", "ijpq", "nvp", "nv", "nw"),
    "outer": ("ijpq", "nvp", "nwq", "nv", "nw"),
}
WIDER = {"float32": np.float64, "float64": np.longdouble}


def draw_sizes(rng):
    """Sizes by letter, around the widths of vectors and tiles; no more than a call may take."""
    if rng.random() < 0.005:
        windows = {"n": 40, "v": int(rng.integers(4)), "w": int(rng.integers(4))}
        return windows | dict(zip("pqij", LARGE[rng.integers(2)], strict=True))
    while True:
        one_of = lambda choices: int(rng.choice(choices))  # noqa: E731
        s = {"n": one_of(BATCHES), "p": one_of(DEPTHS), "q": one_of(COLUMNS)}
        s["v"] = one_of([63, 64, 65, 257]) if rng.random() < 0.03 else one_of(range(6))
        s["w"] = one_of([64, 65]) if rng.random() < 0.03 else one_of(range(6))
        if rng.random() < 0.2:
            s["v"] = s["w"] = 1
        s["i"], s["j"] = one_of(BLOCKS), one_of(BLOCKS)
        if rng.random() < 0.02:  # more than 15 bits count
            s["i"], s["p"], s["q"] = 40_000, 1, 1
        products = s["n"] * s["v"] * s["w"] * max(s["p"] * s["q"], 1)
        largest = max(prod(s[axis] for axis in axes) for axes in AXES["gemv"])
        if products <= MOST_PRODUCTS and largest <= MOST_ELEMENTS:
            return s


@dataclass
class Record:
    """What came of the problems that took one path."""

    problems: int = 0
    largest: float = 0.0
    elements: int = 0
    zeros: int = 0
    failures: int = 0  # of allocations

    def add(self, result, shares, is_exact):
        self.problems += 1
        if result.size and not is_exact:
            self.largest = max(self.largest, float(shares.max()))
            self.elements += result.size
            self.zeros += int((result == 0).sum())

    def __str__(self):
        share = self.zeros / max(self.elements, 1)
        text = f"{self.problems} problems, error / bound {self.largest:.3f}, {share:.1%} zeros"
        return text + f", {self.failures} allocations failed" * bool(self.failures)


RECORDS = defaultdict(Record)


class Problem:
    """Operands of one call as they lie, and what it must compute."""

    def __init__(self, seed, regions):
        self.rng = rng = np.random.default_rng(seed)
        self.op = str(rng.choice(list(AXES)))
        self.dtype = str(rng.choice(list(WIDER)))
        self.sizes = draw_sizes(rng)
        self.is_exact = rng.random() < 0.4
        self.is_padded = rng.random() < 0.2
        self.is_shared = rng.random() < 0.1
        self.in_place = rng.random() < 0.6
        self.alpha = 1 if self.op == "gemv" else float(rng.choice([1, -1, 0.5, 3]))
        self.padding = int(rng.choice([-1, 100, 127])) if self.is_padded else 0
        values, indices = zip(*map(self.draw, AXES[self.op]), strict=True)
        self.known = [self.known_of(index) for index in indices[3:]]
        arrays = [*values[:3], *indices[3:]]
        self.held = [
            region.hold(
                a, draw_strides(rng, a.shape, a.itemsize, k == 0), at_end=rng.random() < 0.5
            )
            for k, (a, region) in enumerate(zip(arrays, regions, strict=True))
        ]
        self.regions = regions

    def draw(self, axes):
        """Values with these axes, and None, or None and an index if these are two."""
        shape = tuple(self.sizes[axis] for axis in axes)
        if len(axes) > 2:
            values = (
                self.rng.integers(-4, 5, shape) if self.is_exact else self.rng.normal(size=shape)
            )
            return values.astype(self.dtype), None
        blocks = self.sizes["i" if axes == "nv" else "j"]
        held = max(blocks - 1, self.padding), min(self.padding, 0)
        fitting = [
            d for d in INDEX_DTYPES if np.iinfo(d).max >= held[0] and np.iinfo(d).min <= held[1]
        ]
        dtype = np.dtype(str(self.rng.choice(fitting)))
        low = -min(blocks, -np.iinfo(dtype).min) if dtype.kind == "i" else 0
        index = self.rng.integers(low if self.rng.random() < 0.5 else 0, blocks, shape)
        if self.is_shared and len(index):
            index[:] = index[0]
        if self.is_padded:
            index[self.rng.random(shape) < self.rng.choice([0, 0.4, 1])] = self.padding
        return None, index.astype(dtype)

    def known_of(self, index):
        """What is known of an index before a call: its bounds, sometimes."""
        is_constant = not self.is_padded and index.size and index.min() >= 0
        bounds = (int(index.min()), int(index.max())) if is_constant and self.in_place else (-1, -1)
        return (*bounds, int(self.is_padded), self.padding)

    @property
    def path(self):
        s = self.sizes
        most = thresholds.DIRECT_ELEMENTS
        if s["v"] == s["w"] == 1:
            most = thresholds.DIRECT_ELEMENTS_OF_ONE
        is_direct = s["p"] * s["q"] <= most or min(s["p"], s["q"]) <= thresholds.DIRECT_THICKNESS
        words = ["direct" if is_direct else "shared" if self.is_shared else "sorted"]
        return " ".join([self.op, self.dtype, *words, *["padded"] * self.is_padded])

    def words(self):
        """The call as a table of numbers, so that no layout is compiled anew."""
        numbers = []
        for k, a in enumerate(self.held):
            numbers += [a.__array_interface__["data"][0], *a.shape, *a.strides]
            if k > 2:
                numbers += [a.itemsize, int(a.dtype.kind == "i"), *self.known[k - 3]]
        return np.array(numbers, np.int64)

    def expected(self):
        """The value, the sum of magnitudes, and the terms of a sum."""
        o, one, other, left, right = self.held
        wide = WIDER[self.dtype]
        value, magnitude = o.astype(wide), abs(o.astype(wide))
        one, other = one.astype(wide), other.astype(wide)
        i, j = (index.astype(np.int64) for index in (left, right))
        s = self.sizes
        if self.is_padded:
            is_used = (i != self.padding)[:, :, None] & (j != self.padding)[:, None, :]
        else:
            is_used = np.ones((s["n"], s["v"], s["w"]), bool)
        n, v, w = np.nonzero(is_used)
        blocks = i[n, v], j[n, w]
        if self.op == "gemv":
            np.add.at(value, (n, w), np.einsum("tp,tpq->tq", other[n, v], one[blocks]))
            np.add.at(
                magnitude, (n, w), np.einsum("tp,tpq->tq", abs(other[n, v]), abs(one[blocks]))
            )
            return value, magnitude, s["v"] * s["p"] + 2
        products = self.alpha * one[n, v][:, :, None] * other[n, w][:, None, :]
        blocks = blocks[0] % s["i"], blocks[1] % s["j"]
        np.add.at(value, blocks, products)
        np.add.at(magnitude, blocks, abs(products))
        return value, magnitude, len(n) + 2

    def spoil_index(self):
        """Have an index name no block, if it is one of a dtype that can; whether it does."""
        which = int(self.rng.integers(3, 5))
        index, blocks = self.held[which], self.sizes["ij"[which - 3]]
        limits = np.iinfo(index.dtype)
        low = -blocks - 1 if index.dtype.kind == "i" else -1
        out_of_range = [x for x in (blocks, low, limits.max, limits.min) if not low < x < blocks]
        wrong = [x for x in out_of_range if limits.min <= x <= limits.max]
        wrong = [x for x in wrong if not self.is_padded or x != self.padding]
        if not index.size or not wrong or not self.has_triples:
            return False
        index[tuple(self.rng.integers(index.shape))] = self.rng.choice(np.array(wrong, index.dtype))
        self.known[which - 3] = (-1, -1, *self.known[which - 3][2:])
        self.regions[which].remember()
        return True

    @property
    def has_triples(self):
        return all(self.sizes[letter] for letter in "nvw")

    def call(self, is_threaded):
        """What makes the call when it is called."""
        number = OPS.index(GEMV.op if self.op == "gemv" else OUTER.op)
        about = [number, int(self.is_padded), self.padding, int(is_threaded)]
        words = np.concatenate([self.words(), np.array(about, np.int64)])
        scale = np.dtype(self.dtype).type(self.alpha)
        return partial(CALLS[self.op, self.in_place], words, scale)

    def run(self, is_threaded):
        """The result of a call, of which nothing but that is written."""
        self.regions[0].restore()
        result = self.call(is_threaded)()
        result = self.held[0].copy() if self.in_place else result
        assert self.regions[0].is_unchanged(but_elements=self.in_place), "written beside the output"
        for region in self.regions[1:]:
            assert region.is_unchanged(), "an input is written"
        return result

    def check(self, most_threads):
        """Run it, on each number of threads, and compare the result with what it must be."""
        value, magnitude, terms = self.expected()
        first = self.run(is_threaded=False)
        for threads in range(2, most_threads + 1):
            numba.set_num_threads(threads)
            result = self.run(is_threaded=True)
            assert result.tobytes() == first.tobytes(), f"other bits on {threads} threads"
        info = np.finfo(self.dtype)
        error, bound = abs(first - value), terms * (2 * info.eps * magnitude + info.tiny)
        if self.is_exact:
            assert not error.any(), f"an exact sum is off by {error.max()}"
        assert (error <= bound).all(), f"an error is {(error / bound).max()} of its bound"
        RECORDS[self.path].add(first, error / bound, self.is_exact)

    def check_failing_allocations(self):
        """Each allocation of a call fails in turn: then it raises, and nothing is written."""
        import _testcapi  # of Python's own tests, which not every Python comes with

        expected, call = self.run(is_threaded=False), self.call(is_threaded=False)
        for n in range(1, ALLOCATIONS + 1):
            self.regions[0].restore()
            _testcapi.set_nomemory(n, n + 1)
            try:
                result = call()
            except (MemoryError, TypeError):  # a TypeError is Numba's, of an array for Python
                RECORDS[self.path].failures += 1
                _testcapi.remove_mem_hooks()
                assert all(region.is_unchanged() for region in self.regions), "half written"
            else:
                _testcapi.remove_mem_hooks()
                result = self.held[0] if self.in_place else result
                assert result.tobytes() == expected.tobytes(), "an allocation fails unnoticed"

    def check_that_it_raises(self):
        try:
            self.run(is_threaded=False)
        except IndexError:
            assert all(region.is_unchanged() for region in self.regions), "written before checked"
        else:
            raise AssertionError("an index out of range is not told")


@kernel
def array3(words, at):
    return Array(
        words[at],
        (words[at + 1], words[at + 2], words[at + 3]),
        (words[at + 4], words[at + 5], words[at + 6]),
    )


@kernel
def array4(words, at):
    return Array(
        words[at],
        (words[at + 1], words[at + 2], words[at + 3], words[at + 4]),
        (words[at + 5], words[at + 6], words[at + 7], words[at + 8]),
    )


@kernel
def index2(words, at):
    known = Known(words[at + 7], words[at + 8], words[at + 9] != 0, words[at + 10])
    return IndexArray(
        words[at],
        (words[at + 1], words[at + 2]),
        (words[at + 3], words[at + 4]),
        words[at + 5],
        words[at + 6] != 0,
        known,
    )


def caller(op, unit):
    """A function of a table of numbers and a scale that calls a unit."""
    ready, call = unit.ready, unit.call
    first, second, second_at = (array3, array4, 7) if op == "gemv" else (array4, array3, 9)

    @numba.njit(error_model="numpy")
    def call_unit(words, scale):
        about = Call(words[45], words[46], words[47], words[48])
        operands = first(words, 0), second(words, second_at), array3(words, 16)
        indices = index2(words, 23), index2(words, 34)
        ready(scale, 0)
        return call(scale, 0, (*operands, *indices, scale, about))

    return call_unit


UNITS = {
    ("gemv", True): ADD_GEMV,
    ("gemv", False): NEW_GEMV,
    ("outer", True): ADD_OUTER,
    ("outer", False): NEW_OUTER,
}
CALLS = {key: caller(key[0], unit) for key, unit in UNITS.items()}
