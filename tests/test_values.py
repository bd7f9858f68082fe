"""Random problems against the oracle, the same for every backend."""

from dataclasses import replace
from functools import cache
from typing import ClassVar

import numpy as np
import oracle
import pytensor
import pytensor.tensor as pt
import pytest
from cases import COMPILED_LAYOUTS, FORWARD_LAYOUTS, Draw, Sizes, few_sizes, needs_compiler, sizes
from hypothesis import given, settings
from hypothesis import strategies as st

from blocksparse_ops import SparseBlockGemv, SparseBlockOuter, sparse_block_dot, sparse_block_gemv

many = settings(max_examples=70, deadline=None)
seeds = st.integers(0, 2**32 - 1)
CONTIGUOUS = COMPILED_LAYOUTS[0]


def gemv(*arguments, padding_idx=None):
    return SparseBlockGemv(padding_idx=padding_idx)(*arguments)


def outer(*arguments, padding_idx=None):
    return SparseBlockOuter(padding_idx=padding_idx)(*arguments)


def gemv_transposed(o, W, h, inputIdx, outputIdx, padding_idx=None):
    """gemv with a view of the weights, as the gradient in h has it."""
    return gemv(o, W.transpose(1, 0, 3, 2), h, inputIdx, outputIdx, padding_idx=padding_idx)


def transpose_weights(o, W, h, inputIdx, outputIdx):
    return [o, W.transpose(1, 0, 3, 2), h, inputIdx, outputIdx]


# The graph, the arrays that it takes, how they enter it, and what it must compute.
PROBLEMS = {
    "gemv": (gemv, Draw.gemv, lambda *arrays: arrays, oracle.gemv),
    "gemv_transposed": (gemv_transposed, Draw.gemv, transpose_weights, oracle.gemv),
    "dot": (sparse_block_dot, Draw.dot, lambda *arrays: arrays, oracle.dot),
    "outer": (outer, Draw.outer, lambda *arrays: arrays, oracle.outer),
}


@cache
def compiled(mode, problem, layout, dtype, destroy_first=False):
    """A function of contiguous buffers; the op sees views of them that lie as `layout` says."""
    build, draw, enter, _ = PROBLEMS[problem]
    arrays = draw(Draw(Sizes(1, 1, 1, 1, 1, 1, 1), 0, dtype, layout.index_dtypes)).values()
    buffers = [pt.tensor(dtype=a.dtype, shape=(None,) * a.ndim) for a in enter(*arrays)]
    result = build(*layout.views(buffers), padding_idx=layout.padding_idx)
    if destroy_first:
        buffers[0] = pytensor.In(buffers[0], mutable=True)
        result = pytensor.Out(result, borrow=True)
    function = pytensor.function(buffers, result, mode=mode)
    # Some backends return arrays of their library.
    return lambda *values: np.asarray(function(*values))


class Values:
    """What every backend must compute. The class of a backend names its mode."""

    mode: str
    sizes = sizes
    layouts = COMPILED_LAYOUTS
    # A library's matmul is free to sum in another order for another number of rows.
    bits_are_the_same = True
    # What PyTensor makes of dtypes that a library does not have.
    narrowed: ClassVar = {}

    @pytest.mark.parametrize("problem", PROBLEMS)
    @many
    @given(data=st.data(), seed=seeds)
    def test_random_problems(self, problem, layout, dtype, data, seed):
        sizes = data.draw(self.sizes)
        _, draw, enter, expect = PROBLEMS[problem]
        function = compiled(self.mode, problem, layout, dtype)
        for integers, agree in ((False, oracle.assert_within_bound), (True, oracle.assert_exact)):
            arrays = draw(layout.draw(sizes, seed, dtype, integers)).values()
            actual = function(*layout.buffers(enter(*arrays)))
            assert actual.dtype == dtype
            agree(actual, expect(*arrays, layout.padding_idx))

    @pytest.mark.parametrize("problem", ["gemv", "gemv_transposed"])
    @settings(max_examples=30, deadline=None)
    @given(data=st.data(), seed=seeds)
    def test_same_bits_wherever_a_row_stands(self, problem, data, seed):
        """An example's sums do not depend on the tile into which it falls, nor on the layout."""
        sizes = data.draw(self.sizes)
        arrays = Draw(sizes, seed, "float32").gemv()
        expected = compiled(self.mode, "gemv", CONTIGUOUS, "float32")(*arrays.values())
        order = np.random.default_rng(seed).permutation(sizes.batch)
        shuffled = [a if name == "W" else a[order] for name, a in arrays.items()]
        entered = CONTIGUOUS.buffers(PROBLEMS[problem][2](*shuffled))
        actual = compiled(self.mode, problem, CONTIGUOUS, "float32")(*entered)
        if self.bits_are_the_same:
            np.testing.assert_array_equal(actual, expected[order])
        else:
            np.testing.assert_allclose(actual, expected[order], 1e-3, 1e-3)

    @pytest.mark.parametrize(
        "dtypes", [("int16", "uint16"), ("uint32", "int16"), ("uint8", "int8")]
    )
    @pytest.mark.parametrize(
        ("problem", "padding_idx"), [("gemv", None), ("outer", None), ("outer", 100)]
    )
    def test_other_index_dtypes(self, problem, padding_idx, dtypes):
        self.check_others(problem, "float64", dtypes, padding_idx)

    @pytest.mark.parametrize(
        "dtype", ["bool", "int8", "uint16", "int64", "complex64", "complex128"]
    )
    @pytest.mark.parametrize(
        ("problem", "padding_idx"), [("gemv", None), ("gemv", 100), ("outer", None)]
    )
    def test_other_dtypes(self, problem, padding_idx, dtype):
        self.check_others(problem, dtype, padding_idx=padding_idx)

    def check_others(self, problem, dtype, index_dtypes=("int64", "int64"), padding_idx=None):
        _, draw, enter, expect = PROBLEMS[problem]
        layout = replace(CONTIGUOUS, index_dtypes=index_dtypes, padding_idx=padding_idx)
        arrays = draw(layout.draw(Sizes(3, 2, 5, 4, 2, 3, 9), 0, dtype)).values()
        actual = compiled(self.mode, problem, layout, dtype)(*layout.buffers(enter(*arrays)))
        assert actual.dtype == self.narrowed.get(dtype, dtype)
        oracle.assert_within_bound(actual, expect(*arrays, padding_idx))

    @pytest.mark.parametrize("batch", [1, 30], ids=["row by row", "block by block"])
    def test_blocks_that_no_index_names_are_not_read(self, batch):
        draw = Draw(Sizes(4, 4, 8, 8, 2, 2, batch), 0, "float32")
        arrays = draw.gemv()
        arrays["inputIdx"] %= 2
        arrays["outputIdx"] %= 2
        arrays["W"][2:] = np.nan
        arrays["W"][:, 2:] = np.nan
        for problem in ("gemv", "gemv_transposed"):
            enter = PROBLEMS[problem][2]
            function = compiled(self.mode, problem, CONTIGUOUS, "float32")
            assert np.isfinite(function(*CONTIGUOUS.buffers(enter(*arrays.values())))).all()

    def test_blocks_that_no_index_names_are_not_written(self):
        arrays = Draw(Sizes(4, 4, 8, 8, 2, 2, 3), 0, "float32").outer()
        arrays["xIdx"] %= 2
        arrays["yIdx"] %= 2
        arrays["alpha"] = np.float32(np.nan)
        actual = compiled(self.mode, "outer", CONTIGUOUS, "float32")(*arrays.values())
        np.testing.assert_array_equal(actual[2:], arrays["o"][2:])
        np.testing.assert_array_equal(actual[:2, 2:], arrays["o"][:2, 2:])
        assert np.isnan(actual[:2, :2]).any()

    @pytest.mark.parametrize("size", [8, 17], ids=["as they stand", "sorted"])
    def test_a_scale_of_zero_adds_nothing(self, size):
        arrays = Draw(Sizes(4, 4, size, size, 2, 2, 3), 0, "float32").outer()
        arrays["x"][0], arrays["y"][1] = np.nan, np.inf
        arrays["alpha"] = np.float32(0)
        actual = compiled(self.mode, "outer", CONTIGUOUS, "float32")(*arrays.values())
        np.testing.assert_array_equal(actual, arrays["o"])

    @pytest.mark.parametrize("problem", PROBLEMS)
    def test_read_only_inputs(self, problem):
        _, draw, enter, expect = PROBLEMS[problem]
        arrays = draw(Draw(Sizes(3, 2, 5, 4, 2, 3, 4), 0, "float64"))
        for array in arrays.values():
            array.flags.writeable = False
        actual = compiled(self.mode, problem, CONTIGUOUS, "float64")(*enter(*arrays.values()))
        oracle.assert_within_bound(actual, expect(*arrays.values()))

    def test_a_destroyed_view_that_repeats_elements(self):
        """In place on a broadcast row, each output element still gets its own sum."""
        arrays = Draw(Sizes(3, 2, 5, 4, 2, 3, 4), 0, "float64").gemv()
        row = pt.vector("row")
        others = [
            pt.tensor(name, dtype=a.dtype, shape=(None,) * a.ndim)
            for name, a in list(arrays.items())[1:]
        ]
        result = sparse_block_gemv(pt.broadcast_to(row, (4, 3, 4)), *others)
        function = pytensor.function([row, *others], result, mode=self.mode)
        bias = arrays["o"][0, 0]
        arrays["o"] = np.broadcast_to(bias, (4, 3, 4))
        actual = np.asarray(function(bias, *list(arrays.values())[1:]))
        oracle.assert_within_bound(actual, oracle.gemv(*arrays.values()))

    def test_output_survives_the_next_call(self):
        function = compiled(self.mode, "gemv", CONTIGUOUS, "float64")
        problems = [Draw(Sizes(3, 2, 5, 4, 2, 3, 4), seed, "float64").gemv() for seed in (0, 1)]
        first = function(*problems[0].values())
        kept = first.copy()
        function(*problems[1].values())
        np.testing.assert_array_equal(first, kept)


class LibraryValues(Values):
    """For backends that are array libraries: one compilation a shape, and arrays of their own."""

    sizes = few_sizes
    layouts = FORWARD_LAYOUTS
    bits_are_the_same = False

    @pytest.mark.parametrize("problem", PROBLEMS)
    def test_half_precision(self, problem):
        self.check_others(problem, "float16")


class ValuesInPlace(Values):
    """For backends that keep NumPy's memory."""

    writes_in_place = True

    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    @pytest.mark.parametrize("problem", ["gemv", "outer"])
    @settings(max_examples=30, deadline=None)
    @given(sizes=sizes, seed=seeds)
    def test_in_place(self, problem, dtype, sizes, seed):
        """The result is the first argument's memory, and has the bits of the op that copies."""
        arrays = list(PROBLEMS[problem][1](Draw(sizes, seed, dtype)).values())
        copied = compiled(self.mode, problem, CONTIGUOUS, dtype)(*arrays)
        destroyed = compiled(self.mode, problem, CONTIGUOUS, dtype, True)(*arrays)
        np.testing.assert_array_equal(destroyed, copied)
        if self.writes_in_place and copied.size:
            assert np.shares_memory(destroyed, arrays[0])


class TestPython(ValuesInPlace):
    mode = "FAST_COMPILE"
    bits_are_the_same = False
    writes_in_place = False

    @pytest.mark.parametrize("problem", PROBLEMS)
    def test_half_precision(self, problem):
        self.check_others(problem, "float16")


@needs_compiler
class TestC(ValuesInPlace):
    mode = "CVM"

    @pytest.mark.parametrize("problem", PROBLEMS)
    def test_dtypes_without_c_code(self, problem, recwarn):
        self.check_others(problem, "float16")
        assert not [w for w in recwarn if "SparseBlock" in str(w.message)]


class TestNumba(ValuesInPlace):
    mode = "NUMBA"

    def test_half_precision(self):
        """PyTensor's Numba backend has none, and says so."""
        with pytest.raises(NotImplementedError, match="float16"):
            compiled(self.mode, "gemv", CONTIGUOUS, "float16")
