"""The path of small blocks: where it begins, starts from one value, and constant indices."""

from dataclasses import replace

import numpy as np
import oracle
import pytensor
import pytensor.tensor as pt
import pytest
from cases import Draw, Sizes, needs_compiler, symbols
from pytensor.compile.mode import get_mode
from test_values import CONTIGUOUS, PROBLEMS, compiled

from blocksparse_ops import SparseBlockGemv, SparseBlockOuter, sparse_block_dot, sparse_block_gemv
from blocksparse_ops.kernels.thresholds import (
    DIRECT_ELEMENTS,
    DIRECT_ELEMENTS_OF_ONE,
    DIRECT_THICKNESS,
)
from blocksparse_ops.zeros import BlockZeros, RepeatedZero

COMPILED = [pytest.param("CVM", marks=needs_compiler), "NUMBA"]

# Of both sides of each threshold.
SIDE = int(DIRECT_ELEMENTS**0.5)
BLOCKS = [
    (SIDE, DIRECT_ELEMENTS_OF_ONE // SIDE),
    (SIDE, DIRECT_ELEMENTS_OF_ONE // SIDE + 1),
    (SIDE, SIDE),
    (SIDE, SIDE + 1),
    (SIDE + 1, SIDE),
    (DIRECT_THICKNESS, DIRECT_ELEMENTS + 1),
    (DIRECT_ELEMENTS + 1, DIRECT_THICKNESS),
    (DIRECT_THICKNESS + 1, DIRECT_ELEMENTS // 2 + 1),
    (DIRECT_ELEMENTS // 2 + 1, DIRECT_THICKNESS + 1),
]
WINDOWS = [(1, 1), (1, 3), (4, 1)]


@pytest.mark.parametrize("mode", COMPILED)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("problem", ["gemv", "gemv_transposed", "outer"])
def test_both_sides_of_the_thresholds(mode, dtype, problem):
    _, draw, enter, expect = PROBLEMS[problem]
    for seed, (iSize, oSize) in enumerate(BLOCKS):
        for iWin, oWin in WINDOWS:
            sizes = Sizes(4, 3, iSize, oSize, iWin, oWin, batch=30)
            arrays = draw(Draw(sizes, seed, dtype)).values()
            actual = compiled(mode, problem, CONTIGUOUS, dtype)(*enter(*arrays))
            oracle.assert_within_bound(actual, expect(*arrays))


# Of part of a vector, of one, of as many as are worked on at once, of more, and what is left over.
WIDTHS = [*range(1, 18), 23, 31, 32, 33, 47, 64, 65, 79, 127]


@pytest.mark.parametrize("mode", COMPILED)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("problem", ["gemv", "gemv_transposed", "outer"])
@pytest.mark.parametrize("rows", [1, 9])
def test_each_width(mode, dtype, problem, rows):
    """And both layouts of a block give the same bits."""
    _, draw, enter, expect = PROBLEMS[problem]
    widths = [columns for columns in WIDTHS if rows == 1 or rows * columns <= DIRECT_ELEMENTS]
    for seed, columns in enumerate(widths):
        for iSize, oSize in ((rows, columns), (columns, rows)):
            arrays = draw(Draw(Sizes(4, 1, iSize, oSize, 1, 1, batch=9), seed, dtype)).values()
            actual = compiled(mode, problem, CONTIGUOUS, dtype)(*enter(*arrays))
            oracle.assert_within_bound(actual, expect(*arrays))
            if problem == "gemv_transposed":
                expected = compiled(mode, "gemv", CONTIGUOUS, dtype)(*arrays)
                np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("mode", COMPILED)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("problem", ["gemv", "gemv_transposed", "outer"])
@pytest.mark.parametrize("iWin", [1, 3])
def test_output_windows_of_one_place(mode, dtype, problem, iWin):
    """Of blocks along one axis of W one index matters; of blocks of one column rows go together.

    A row has the same bits alone.
    """
    _, draw, enter, expect = PROBLEMS[problem]
    for iBlocks, oBlocks in ((5, 1), (1, 5), (1, 1), (5, 4)):
        for iSize, oSize in ((1, 1), (1, 7), (7, 1), (2, 1), (25, 1), (3, 2)):
            for batch in (0, 1, 3, 4, 5, 7, 8, 9, 16, 17):
                sizes = Sizes(iBlocks, oBlocks, iSize, oSize, iWin, 1, batch)
                arrays = draw(Draw(sizes, batch, dtype))
                run = compiled(mode, problem, CONTIGUOUS, dtype)
                actual = run(*enter(*arrays.values()))
                oracle.assert_within_bound(actual, expect(*arrays.values()))
                if problem != "outer":
                    last = [x if name == "W" else x[-1:] for name, x in arrays.items()]
                    np.testing.assert_array_equal(run(*enter(*last)), actual[-1:])


@pytest.mark.parametrize("mode", COMPILED)
@pytest.mark.parametrize("problem", ["gemv", "gemv_transposed", "outer"])
@pytest.mark.parametrize(
    "sizes",
    [
        Sizes(iBlocks=100, oBlocks=90, iSize=16, oSize=16, iWin=3, oWin=2, batch=40),
        Sizes(iBlocks=9000, oBlocks=1, iSize=258, oSize=1, iWin=1, oWin=1, batch=30),
    ],
)
def test_weights_that_no_cache_holds(mode, problem, sizes):
    """Their blocks are prefetched: rows ahead, up to the last one and not beyond."""
    _, draw, enter, expect = PROBLEMS[problem]
    arrays = draw(Draw(sizes, 0, "float32")).values()
    actual = compiled(mode, problem, CONTIGUOUS, "float32")(*enter(*arrays))
    oracle.assert_within_bound(actual, expect(*arrays))


@pytest.mark.parametrize("mode", COMPILED)
def test_a_start_that_is_one_element(mode):
    """It is read wherever a sum starts, on either path, and where there is nothing to add."""
    value = pt.tensor(dtype="float64", shape=(1, 1, 1))
    sizes = pt.lvector()
    symbolic = symbols(Draw(Sizes(1, 1, 1, 1, 1, 1, 1), 0, "float64").gemv())
    del symbolic["o"]
    o = RepeatedZero()(value, *(sizes[k] for k in range(3)))
    inputs = [value, sizes, *symbolic.values()]
    function = pytensor.function(inputs, sparse_block_gemv(o, *symbolic.values()), mode=mode)
    for iSize, oSize, iWin, batch in [
        (4, 20, 2, 5), (1, 7, 1, 5), (30, 30, 2, 5), (4, 3, 0, 5), (0, 3, 2, 5), (4, 3, 2, 0)
    ]:  # fmt: skip
        arrays = Draw(Sizes(3, 2, iSize, oSize, iWin, 2, batch), 0, "float64").gemv()
        arrays["o"] = np.full_like(arrays["o"], 2.5)
        _, *others = arrays.values()
        for _ in range(2):  # the second time into the memory of the first
            actual = function(np.full((1, 1, 1), 2.5), arrays["o"].shape, *others)
            oracle.assert_within_bound(actual, oracle.gemv(*arrays.values()))


@pytest.mark.parametrize("mode", COMPILED)
def test_products_of_zeros_start_from_one(mode):
    arrays = Draw(Sizes(3, 2, 4, 20, 2, 2, 5), 0, "float64").dot()
    arrays.pop("b")
    W, h, inputIdx, outputIdx = symbols(arrays).values()
    product = sparse_block_dot(W, h, inputIdx, None, outputIdx)
    inputs, outputs = [W, h, inputIdx, outputIdx], [product, *pt.grad((product**2).sum(), [W, h])]
    function = pytensor.function(inputs, outputs, mode=mode)
    starts = [node.inputs[0].owner.op for node in function.maker.fgraph.apply_nodes
              if isinstance(node.op, SparseBlockGemv)]  # fmt: skip
    assert starts == [RepeatedZero(), RepeatedZero()]
    excluded = get_mode(mode).excluding("local_sparse_block_gemv_of_repeated_zero")
    other = pytensor.function(inputs, outputs, mode=excluded)
    assert RepeatedZero() not in [node.op for node in other.maker.fgraph.apply_nodes]
    for actual, expected in zip(function(*arrays.values()), other(*arrays.values()), strict=True):
        np.testing.assert_array_equal(actual, expected)


def test_products_of_others_do_not_start_from_zero():
    arrays = Draw(Sizes(3, 2, 4, 20, 2, 2, 5), 0, "float64").gemv()
    o, *others = symbols(arrays).values()
    for start in (o, BlockZeros()(np.ones((1, 1, 1)), 5, 2, 20)):
        product = sparse_block_gemv(start, *others)
        function = pytensor.function([o, *others], product, mode="NUMBA", on_unused_input="ignore")
        assert RepeatedZero() not in [node.op for node in function.maker.fgraph.apply_nodes]


class TestConstantIndices:
    """They are looked at once, and from then on compared with the number of blocks."""

    sizes = Sizes(iBlocks=5, oBlocks=4, iSize=4, oSize=3, iWin=2, oWin=1, batch=6)
    dtypes = ("int64", "int8", "uint16", "uint64")

    def function(self, mode, inputIdx, outputIdx, padding_idx=None):
        o, W, h = list(symbols(Draw(self.sizes, 0, "float64").gemv()).values())[:3]
        op = SparseBlockGemv(padding_idx=padding_idx)
        product = op(o, W, h, inputIdx, outputIdx)
        return pytensor.function([o, W, h], product, mode=mode)

    @pytest.mark.parametrize("mode", COMPILED)
    @pytest.mark.parametrize("dtype", dtypes)
    def test_values_and_errors(self, mode, dtype):
        arrays = Draw(self.sizes, 0, "float64", (dtype, "int64")).gemv()
        *values, inputIdx, outputIdx = arrays.values()
        expected = oracle.gemv(*arrays.values())
        indices = inputIdx.copy(), outputIdx.copy()
        function = self.function(mode, *indices)
        o, W, h = values
        for _ in range(2):
            oracle.assert_within_bound(function(o, W, h), expected)
            # A lesser number of blocks, for which an index is out of range, and the first again.
            with pytest.raises(IndexError, match=r"inputIdx\[.*W.shape\[0\] = 1, "):
                function(o, W[:1], h)
        for index in indices:  # a constant shares its memory with who made it
            index[:] = 100
        oracle.assert_within_bound(function(o, W, h), expected)

    @pytest.mark.parametrize("mode", COMPILED)
    @pytest.mark.parametrize("iSize", [4, 100])  # as the examples stand, and sorted
    def test_functions_of_other_constants(self, mode, iSize):
        """Of one graph but for them: what is compiled and cached is not another's."""
        for seed, padding_idx in enumerate((None, None, None, -1, 100)):
            sizes = replace(self.sizes, iSize=iSize)
            arrays = Draw(sizes, seed, "float64", padding_idx=padding_idx).gemv()
            *values, inputIdx, outputIdx = arrays.values()
            counted = (
                np.where(index == padding_idx, index, index % blocks)
                for index, blocks in ((inputIdx, 5), (outputIdx, 4))
            )
            for indices in [(inputIdx, outputIdx), tuple(counted)]:
                actual = self.function(mode, *indices, padding_idx)(*values)
                expected = oracle.gemv(*values, *indices, padding_idx)
                oracle.assert_within_bound(actual, expected)

    @pytest.mark.parametrize("mode", COMPILED)
    @pytest.mark.parametrize(("iSize", "padding_idx"), [(4, None), (4, 100), (100, None)])
    def test_outer_products(self, mode, iSize, padding_idx):
        sizes = replace(self.sizes, iSize=iSize)
        arrays = Draw(sizes, 0, "float64", padding_idx=padding_idx).outer()
        if padding_idx is None:
            arrays |= {"xIdx": arrays["xIdx"] % 5, "yIdx": arrays["yIdx"] % 4}
        o, x, y, *_, alpha = symbols(arrays).values()
        op = SparseBlockOuter(padding_idx=padding_idx)
        result = op(o, x, y, arrays["xIdx"], arrays["yIdx"], alpha)
        function = pytensor.function([o, x, y, alpha], result, mode=mode)
        actual = function(*(arrays[name] for name in ("o", "x", "y", "alpha")))
        oracle.assert_within_bound(actual, oracle.outer(*arrays.values(), padding_idx))
