"""The problems that tests and benchmarks share: sizes, values, layouts in memory."""

from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from hypothesis import strategies as st
from pytensor import config
from pytensor.compile.mode import Mode, get_mode

needs_compiler = pytest.mark.skipif(not config.cxx, reason="needs a C++ compiler")

MODES = ["FAST_COMPILE", pytest.param("CVM", marks=needs_compiler), "NUMBA"]

# The modes of array libraries, each an extra of its own.
LIBRARIES = {"JAX": "jax", "PYTORCH": "torch", "MLX": "mlx"}


def needs_library(mode):
    library = LIBRARIES[mode]
    # Before, PyTensor takes float32 for float64 on MLX.
    old = mode == "MLX" and pytensor.__version__ < "3.3"
    reason = f"needs {library}" + " and PyTensor 3.3" * old
    return pytest.mark.skipif(old or find_spec(library) is None, reason=reason)


def array_modes(*modes):
    return [pytest.param(mode, marks=needs_library(mode)) for mode in modes]


ARRAY_MODES = array_modes(*LIBRARIES)
ALL_MODES = [*MODES, *ARRAY_MODES]


def in_python(mode):
    """The rewrites of a mode, and Python to run what they give, which compiles nothing."""
    return Mode("py", get_mode(mode).optimizer)


@dataclass(frozen=True)
class Sizes:
    iBlocks: int
    oBlocks: int
    iSize: int
    oSize: int
    iWin: int
    oWin: int
    batch: int


T = Sizes(8, 7, 6, 5, 4, 3, 2)
M = Sizes(64, 64, 32, 32, 8, 8, 128)
L = Sizes(32, 32, 64, 64, 8, 8, 512)
X = Sizes(256, 256, 32, 32, 16, 16, 32)
S = Sizes(1, 256, 256, 128, 1, 1, 256)
E = Sizes(1, 32, 512, 512, 1, 2, 256)

# Around the widths of vectors and tiles, and the depth of a chunk.
BLOCK_SIZES = [0, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65]
DEPTHS = [*BLOCK_SIZES, 255, 256, 257]
WINDOWS = [0, 1, 2, 3, 4, 5]
BLOCKS = [1, 2, 3, 6]

sizes = st.builds(
    Sizes,
    iBlocks=st.sampled_from(BLOCKS),
    oBlocks=st.sampled_from(BLOCKS),
    iSize=st.sampled_from(DEPTHS),
    oSize=st.sampled_from(BLOCK_SIZES),
    iWin=st.sampled_from(WINDOWS),
    oWin=st.sampled_from(WINDOWS),
    batch=st.sampled_from([0, 1, 2, 3, 7]),
)

# For backends that compile anew for each shape: all edges, and blocks that are used once, or by
# one row less and more than a tile has.
FEW_SIZES = [
    Sizes(1, 1, 0, 3, 2, 1, 2),
    Sizes(2, 3, 4, 0, 1, 2, 3),
    Sizes(3, 2, 1, 1, 0, 2, 0),
    Sizes(6, 3, 17, 8, 4, 3, 1),
    Sizes(1, 2, 4, 7, 2, 1, 9),
    Sizes(2, 1, 65, 9, 3, 2, 33),
]
few_sizes = st.sampled_from(FEW_SIZES)


# Which index pads the places of each argument of a product or an outer product.
PADDED_BY = {"o": "outputIdx", "h": "inputIdx", "x": "xIdx", "y": "yIdx"}


class Draw:
    """Random arrays for one problem; where an index is padded, NaNs."""

    def __init__(
        self,
        sizes,
        seed,
        dtype,
        index_dtypes=("int64", "int64"),
        integers=False,
        padding_idx=None,
    ):
        self.padding_idx = padding_idx
        self.sizes = sizes
        self.rng = np.random.default_rng(seed)
        self.dtype = np.dtype(dtype)
        self.index_dtypes = index_dtypes
        self.integers = integers or self.dtype.kind in "biu"

    def values(self, *shape):
        if self.integers:
            low = 0 if self.dtype.kind in "bu" else -4
            return self.rng.integers(low, 5, shape).astype(self.dtype)
        values = self.rng.normal(size=shape)
        if self.dtype.kind == "c":
            values = values + 1j * self.rng.normal(size=shape)
        return values.astype(self.dtype)

    def index(self, blocks, window, dtype):
        """Indices with repeats; from the end too, where the dtype has negative values."""
        low = -blocks if np.dtype(dtype).kind == "i" else 0
        return self.rng.integers(low, blocks, (self.sizes.batch, window)).astype(dtype)

    def padded(self, index):
        """Of some examples all places, and of the others some, all or none."""
        if self.padding_idx is not None:
            share = self.rng.choice([0, 0.4, 1])
            index[self.rng.random(index.shape) < share] = self.padding_idx
            index[self.rng.random(len(index)) < 0.2] = self.padding_idx
        return index

    def unread(self, arrays):
        """The same, with NaNs in the places that are padded."""
        for name, index in PADDED_BY.items():
            is_padded = self.padding_idx is not None and {name, index} <= arrays.keys()
            if is_padded and self.dtype.kind in "fc":
                arrays[name][arrays[index] == self.padding_idx] = np.nan
        return arrays

    def indices(self):
        s = self.sizes
        return {
            "inputIdx": self.padded(self.index(s.iBlocks, s.iWin, self.index_dtypes[0])),
            "outputIdx": self.padded(self.index(s.oBlocks, s.oWin, self.index_dtypes[1])),
        }

    def gemv(self):
        s = self.sizes
        arrays = {
            "o": self.values(s.batch, s.oWin, s.oSize),
            "W": self.values(s.iBlocks, s.oBlocks, s.iSize, s.oSize),
            "h": self.values(s.batch, s.iWin, s.iSize),
            **self.indices(),
        }
        return self.unread(arrays)

    def dot(self):
        s = self.sizes
        arrays = {
            "W": self.values(s.iBlocks, s.oBlocks, s.iSize, s.oSize),
            "h": self.values(s.batch, s.iWin, s.iSize),
            "inputIdx": self.indices()["inputIdx"],
            "b": self.values(s.oBlocks, s.oSize),
            "outputIdx": self.indices()["outputIdx"],
        }
        return self.unread(arrays)

    def outer(self):
        s = self.sizes
        arrays = {
            "o": self.values(s.iBlocks, s.oBlocks, s.iSize, s.oSize),
            "x": self.values(s.batch, s.iWin, s.iSize),
            "y": self.values(s.batch, s.oWin, s.oSize),
            "xIdx": self.indices()["inputIdx"],
            "yIdx": self.indices()["outputIdx"],
            "alpha": self.values(),
        }
        return self.unread(arrays)


# A way for an array to lie in memory: how a contiguous buffer is made to hold it, and the view
# of the buffer, NumPy's or PyTensor's, that is the array. Views within a graph keep the number
# of compiled functions small: Numba compiles anew for each layout of an input.
def _all_reversed(x):
    return x[tuple(slice(None, None, -1) for _ in range(x.ndim))]


def _all_transposed(x):
    return x.transpose(tuple(reversed(range(x.ndim))))


LAYOUTS = {
    "contiguous": (lambda a: a, lambda x: x),
    "gapped": (lambda a: np.repeat(a, 2, axis=-1), lambda x: x[..., ::2]),
    "reversed": (_all_reversed, _all_reversed),
    "transposed": (_all_transposed, _all_transposed),
}


@dataclass(frozen=True)
class Layout:
    """One layout for each argument in turn, the dtypes of the two indices, what pads them, and the
    dtypes of the values."""

    name: str
    arguments: tuple[str, ...]
    index_dtypes: tuple[str, str]
    padding_idx: int | None = None
    dtypes: tuple[str, ...] = ("float32", "float64")

    def draw(self, sizes, seed, dtype, integers=False):
        return Draw(sizes, seed, dtype, self.index_dtypes, integers, self.padding_idx)

    def __str__(self):
        return self.name

    def of(self, position):
        return LAYOUTS[self.arguments[position % len(self.arguments)]]

    def buffers(self, arrays):
        return [
            np.ascontiguousarray(self.of(k)[0](a)) if a.ndim else a for k, a in enumerate(arrays)
        ]

    def views(self, buffers):
        return [self.of(k)[1](x) if x.ndim else x for k, x in enumerate(buffers)]


ODD = ("reversed", "gapped", "transposed", "transposed", "gapped")

COMPILED_LAYOUTS = [
    Layout("contiguous", ("contiguous",), ("int64", "int64")),
    Layout("mixed", ("gapped", "transposed", "reversed", "gapped", "reversed"), ("int32", "uint8")),
    Layout("odd", ODD, ("int8", "uint64")),
    Layout("padded", ODD, ("int8", "uint64"), 1, dtypes=("float64",)),
    Layout("padded and contiguous", ("contiguous",), ("int64", "int32"), -1, dtypes=("float32",)),
]

# For array libraries, which know no strides, or no negative ones.
FORWARD_LAYOUTS = [
    Layout("contiguous", ("contiguous",), ("uint8", "int64")),
    Layout("transposed", ("contiguous", "transposed"), ("int32", "uint64")),
    Layout("padded", ("contiguous", "transposed"), ("int32", "uint64"), 1, dtypes=("float64",)),
]


def symbols(arrays, is_static=False):
    """A variable for each array, named as the array is; of unknown shape, or of the array's."""
    return {
        name: pt.tensor(str(name), dtype=a.dtype, shape=a.shape if is_static else (None,) * a.ndim)
        for name, a in arrays.items()
    }
