"""What index arrays ask for: counted, drawn, and as a sparse matrix of SciPy."""

from dataclasses import replace

import numpy as np
import oracle
import pytest
from cases import FEW_SIZES, Draw, M
from scipy.sparse import bsr_array, csr_array

from blocksparse_ops.bsr import bsr_from_weights, weights_from_bsr
from blocksparse_ops.pattern import block_counts, draw_pattern, pattern_costs


def counted_by_hand(inputIdx, outputIdx, blocks, padding_idx):
    count = np.zeros(blocks, int)
    for example_inputs, example_outputs in zip(inputIdx, outputIdx, strict=True):
        for i in example_inputs:
            for j in example_outputs:
                if padding_idx not in (i, j):
                    count[i, j] += 1
    return count


@pytest.mark.parametrize("padding_idx", [None, 1])
@pytest.mark.parametrize("sizes", FEW_SIZES)
def test_blocks_are_counted(sizes, padding_idx):
    indices = Draw(sizes, 1, "float32", padding_idx=padding_idx).indices().values()
    blocks = sizes.iBlocks, sizes.oBlocks
    count = counted_by_hand(*indices, blocks, padding_idx)
    np.testing.assert_array_equal(block_counts(*indices, blocks, padding_idx), count)

    shape = (*blocks, sizes.iSize, sizes.oSize)
    costs = pattern_costs(shape, *indices, "float32", padding_idx)
    block = sizes.iSize * sizes.oSize
    assert costs.examples == sizes.batch
    assert costs.blocks_in_use == np.count_nonzero(count)
    assert costs.multiply_adds == count.sum() * block
    assert costs.bytes_gathered == 4 * sizes.batch * sizes.iWin * sizes.oWin * block
    inputIdx, _ = indices
    rows = (inputIdx != padding_idx).sum() if padding_idx is not None else inputIdx.size
    assert costs.bytes_read == 4 * (np.count_nonzero(count) * block + rows * sizes.iSize)
    assert costs.reuse == pytest.approx(count.sum() / max(np.count_nonzero(count), 1))
    assert costs.share_of_dense == pytest.approx(count.sum() / max(sizes.batch * count.size, 1))


def test_full_windows_cost_as_much_as_the_dense_product():
    inputs, outputs = np.tile(np.arange(3), (5, 1)), np.tile(np.arange(4), (5, 1))
    costs = pattern_costs((3, 4, 2, 2), inputs, outputs)
    assert costs.share_of_dense == 1
    assert costs.reuse == 5
    assert costs.kernel_path == "one pattern"


@pytest.mark.parametrize(
    ("batch", "path"),
    [(4, "as it stands"), (512, "in tiles of 8 rows"), (8192, "in tiles of 32 rows")],
)
def test_the_path_follows_the_reuse(batch, path):
    sizes = replace(M, batch=batch)
    indices = Draw(sizes, 0, "float32").indices().values()
    costs = pattern_costs((sizes.iBlocks, sizes.oBlocks, 32, 32), *indices)
    assert costs.library_path == path
    assert costs.kernel_path == "block by block"
    assert f"reuse           {costs.reuse:.2f}" in str(costs).splitlines()


@pytest.mark.parametrize("function", [block_counts, draw_pattern])
@pytest.mark.parametrize(
    ("inputIdx", "outputIdx", "error"),
    [
        ([[3]], [[0]], IndexError),
        ([[0]], [[-3]], IndexError),
        ([[0], [0]], [[0]], ValueError),
        ([[0.5]], [[0]], TypeError),
        ([[[0]]], [[0]], TypeError),
        (0, [0], TypeError),
        (None, [0], TypeError),
        ([[0, 1], [0]], [[0], [0]], TypeError),
        ([0], [[0]], TypeError),
    ],
)
def test_bad_indices_are_told(function, inputIdx, outputIdx, error):
    with pytest.raises(error, match=rf"{function.__name__}: .*Idx"):
        function(inputIdx, outputIdx, (3, 2))


def test_indices_of_one_example_small_and_empty():
    count = block_counts(np.array([-1, 0], "int8"), np.array([199], "uint8"), (200, 200))
    assert count[[199, 0], 199].tolist() == [1, 1]
    assert count.sum() == 2
    swapped = np.array([-1, 0]).astype(">i8"), np.array([1]).astype("<i2")
    assert block_counts(*swapped, (3, 2))[:, 1].tolist() == [1, 0, 1]
    assert not block_counts([[], []], [[0], [1]], (3, 2)).any()
    with pytest.raises(IndexError, match=r"block_counts: inputIdx\[1\] = 3 .* in \[-3, 3\)"):
        block_counts([0, 3], [0], (3, 2))


@pytest.mark.parametrize("sizes", [4, (4,), (4, 2, 3), (4.5, 2), (-1, 2), "ab", None], ids=str)
def test_sizes_that_are_none_are_told(sizes):
    for function in (block_counts, draw_pattern):
        name = function.__name__
        with pytest.raises(TypeError, match=rf"{name}: blocks is .*; expected .* \(iBlocks, oBlo"):
            function([[0]], [[0]], sizes)
    with pytest.raises(TypeError, match=r"pattern_costs: W_shape is .* \(iBlocks, .*, oSize\)"):
        pattern_costs(sizes, [[0]], [[0]])


def test_the_picture_shows_the_counts():
    indices = [[0, 1], [0, 2]], [[1], [1]]
    ax = draw_pattern(*indices, (3, 2))
    shown = ax.images[0].get_array()
    np.testing.assert_array_equal(shown.filled(0), block_counts(*indices, (3, 2)))
    assert shown.mask[0, 0]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("output block", "input block")
    assert draw_pattern(*indices, (3, 2), ax=ax) is ax


@pytest.mark.parametrize("blocks", [(0, 0), (0, 3), (3, 0)])
@pytest.mark.filterwarnings("error")
def test_the_picture_of_no_blocks(blocks):
    ax = draw_pattern(np.zeros((2, 0), "int64"), np.zeros((2, 0), "int64"), blocks)
    ax.figure.canvas.draw()
    assert ax.get_title() == "0 of 0 blocks in use, 0 times each"


@pytest.mark.parametrize("sizes", [sizes for sizes in FEW_SIZES if sizes.iSize * sizes.oSize])
def test_a_matrix_of_the_blocks_in_use_multiplies_alike(sizes):
    arguments = Draw(replace(sizes, batch=1), 0, "float64", integers=True).gemv()
    o, W, _, inputIdx, outputIdx = arguments.values()
    matrix = bsr_from_weights(W, inputIdx[0], outputIdx[0])
    x = Draw(sizes, 1, "float64", integers=True).values(sizes.iBlocks, sizes.iSize)
    product = (x.ravel() @ matrix).reshape(sizes.oBlocks, sizes.oSize)
    # What a window names several times is there once.
    once = np.unique(inputIdx[0] % sizes.iBlocks)[None]
    expected = oracle.gemv(0 * o, W, x[once], once, outputIdx)[0]
    np.testing.assert_array_equal(product[outputIdx[0]], expected[0])


def test_weights_and_back():
    W = np.arange(1.0, 49).reshape(3, 2, 2, 4)
    matrix = bsr_from_weights(W, [2, -3, 2], [1])
    assert matrix.shape == (6, 8)
    assert matrix.nnz == 2 * 2 * 4
    back, inputIdx, outputIdx = weights_from_bsr(matrix)
    np.testing.assert_array_equal(inputIdx, [0, 2])
    np.testing.assert_array_equal(outputIdx, [1])
    np.testing.assert_array_equal(back[inputIdx, 1], W[inputIdx, 1])
    back[inputIdx, 1] = 0
    assert not back.any()


def test_blocks_that_a_matrix_has_twice_are_summed():
    matrix = bsr_array((np.ones((2, 1, 1)), [0, 0], [0, 2]), shape=(1, 2))
    W, inputIdx, outputIdx = weights_from_bsr(matrix)
    np.testing.assert_array_equal(W[:, :, 0, 0], [[2, 0]])
    assert (inputIdx, outputIdx) == ([0], [0])


def test_other_matrices_are_refused():
    with pytest.raises(TypeError, match=r"csr_array.*tobsr\(blocksize="):
        weights_from_bsr(csr_array((2, 2)))


def test_one_matrix_takes_one_window():
    with pytest.raises(ValueError, match="inputIdx has 2 dimensions"):
        bsr_from_weights(np.ones((1, 1, 1, 1)), [[0]], [0])
    with pytest.raises(ValueError, match="blocks of 0 x 1"):
        bsr_from_weights(np.ones((1, 1, 0, 1)), [0], [0])
