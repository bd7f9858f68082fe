"""Weights of which all examples use the same blocks, as a sparse matrix of SciPy, and back."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.sparse import bsr_array, bsr_matrix

from blocksparse_ops.pattern import counted_pattern


def bsr_from_weights(
    W: npt.ArrayLike, inputIdx: npt.ArrayLike, outputIdx: npt.ArrayLike
) -> bsr_array:
    """``matrix[i * iSize + p, j * oSize + q] = W[i, j, p, q]`` for the blocks in use, else nothing.

    Parameters
    ----------
    W : (iBlocks, oBlocks, iSize, oSize)
        The weights, all blocks; no size of a block may be 0.
    inputIdx : (iWin,)
        Which input blocks are in use, once or several times.
    outputIdx : (oWin,)
        Which output blocks are in use, once or several times.

    Returns
    -------
    scipy.sparse.bsr_array of shape (iBlocks * iSize, oBlocks * oSize)
        A copy of the blocks in use, in the order of rows and columns.

    Raises
    ------
    TypeError
        For weights that have not four dimensions, or indices that are no integers.
    ValueError
        For indices of several examples, blocks without elements, or a dtype that SciPy has not,
        as float16.
    IndexError
        For an index out of range.

    Examples
    --------
    A row of values in all input blocks times the matrix is the product of the windows, for all
    examples alike.

    >>> import numpy as np
    >>> from blocksparse_ops import sparse_block_dot
    >>> from blocksparse_ops.bsr import bsr_from_weights
    >>> W, x = np.arange(48.0).reshape(3, 2, 2, 4), np.ones((1, 3, 2))
    >>> matrix = bsr_from_weights(W, [0, 2], [1])
    >>> (x.reshape(1, 6) @ matrix).reshape(2, 4)[1]
    array([104., 108., 112., 116.])
    >>> sparse_block_dot(W, x[:, [0, 2]], [[0, 2]], None, [[1]]).eval()[0, 0]
    array([104., 108., 112., 116.])
    """
    W = np.asarray(W)
    if W.ndim != 4:
        raise TypeError(
            f"bsr_from_weights: W has {W.ndim} dimensions; expected 4, "
            "of sizes (iBlocks, oBlocks, iSize, oSize)"
        )
    for name, index in {"inputIdx": inputIdx, "outputIdx": outputIdx}.items():
        if np.ndim(index) != 1:
            raise ValueError(
                f"bsr_from_weights: {name} has {np.ndim(index)} dimensions, but one matrix has the "
                "blocks of one window; give 1-D indices, which all examples share"
            )
    pattern = counted_pattern("bsr_from_weights", W.shape[:2], inputIdx, outputIdx)
    i, j = map(np.unique, pattern)
    iBlocks, oBlocks, iSize, oSize = W.shape
    if 0 in (iSize, oSize):
        raise ValueError(
            f"bsr_from_weights: W has blocks of {iSize} x {oSize}; SciPy has none without elements"
        )
    starts = np.zeros(iBlocks + 1, "int64")
    starts[i + 1] = len(j)
    blocks = W[i[:, None], j].reshape(-1, iSize, oSize)
    shape = (iBlocks * iSize, oBlocks * oSize)
    return bsr_array((blocks, np.tile(j, len(i)), starts.cumsum()), shape=shape)


def weights_from_bsr(
    matrix: bsr_array | bsr_matrix,
) -> tuple[np.ndarray, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """``W[i, j, p, q] = matrix[i * iSize + p, j * oSize + q]``, and windows that hold all of it.

    Parameters
    ----------
    matrix : scipy.sparse.bsr_array or bsr_matrix
        Of blocks of iSize x oSize; a block that it has several times is their sum.

    Returns
    -------
    W : (iBlocks, oBlocks, iSize, oSize)
        All blocks, as large as the dense matrix; zeros where `matrix` has none.
    inputIdx : (iWin,)
        The rows of blocks in which `matrix` has any, in order.
    outputIdx : (oWin,)
        The columns of blocks in which `matrix` has any, in order.

    Raises
    ------
    TypeError
        For what is no BSR matrix, of which no block size is known.

    Examples
    --------
    >>> import numpy as np
    >>> from scipy.sparse import bsr_array
    >>> from blocksparse_ops.bsr import weights_from_bsr
    >>> matrix = bsr_array(np.kron([[0, 1], [0, 2], [0, 0]], np.ones((4, 5))), blocksize=(4, 5))
    >>> W, inputIdx, outputIdx = weights_from_bsr(matrix)
    >>> W.shape, inputIdx, outputIdx
    ((3, 2, 4, 5), array([0, 1]), array([1]))
    """
    if getattr(matrix, "format", None) != "bsr":
        raise TypeError(
            f"weights_from_bsr: matrix is a {type(matrix).__name__}; expected a bsr_array, for "
            "instance matrix.tobsr(blocksize=(iSize, oSize))"
        )
    iSize, oSize = matrix.blocksize
    iBlocks, oBlocks = matrix.shape[0] // iSize, matrix.shape[1] // oSize
    i, j = np.repeat(np.arange(iBlocks), np.diff(matrix.indptr)), matrix.indices.astype("int64")
    W = np.zeros((iBlocks, oBlocks, iSize, oSize), matrix.dtype)
    np.add.at(W, (i, j), matrix.data)
    return W, np.unique(i), np.unique(j)
