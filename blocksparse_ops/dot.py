"""sparse_block_dot: the block-sparse product with the bias of the output blocks in use."""

from __future__ import annotations

from pytensor.scalar import upcast
from pytensor.tensor.type import DenseTensorType
from pytensor.tensor.variable import TensorVariable

from blocksparse_ops.arguments import (
    TensorLike,
    as_argument,
    as_block_index,
    as_padding,
    as_tensor,
    check_constants,
)
from blocksparse_ops.bias import add_rows, columns_of
from blocksparse_ops.ops import SparseBlockGemv
from blocksparse_ops.signature import DOT, DOT_WITHOUT_BIAS
from blocksparse_ops.zeros import zeros


def sparse_block_dot(
    W: TensorLike,
    h: TensorLike,
    inputIdx: TensorLike,
    b: TensorLike | None,
    outputIdx: TensorLike,
    padding_idx: int | None = None,
) -> TensorVariable:
    """``b[outputIdx[n, w]] + sum_v h[n, v] @ W[inputIdx[n, v], outputIdx[n, w]]``

    Parameters
    ----------
    W : (iBlocks, oBlocks, iSize, oSize)
        The weights, all blocks.
    h : (batch, iWin, iSize), or (iWin, iSize)
        The values of the input blocks in use. A 2-D `h` is a batch of one.
    inputIdx : (batch, iWin), or (iWin,)
        Which input blocks each example uses, with one dimension less than `h`.
    b : (oBlocks, oSize), or None
        The bias of each output block; None means zeros.
    outputIdx : (batch, oWin), or (oWin,)
        Which output blocks each example computes, with one dimension less than `h`.
    padding_idx : int, optional
        The index that names no block, of either index, so that windows may differ in length: for
        instance -1, which then is not the last block.

    Returns
    -------
    (batch, oWin, oSize)
        The values of the output blocks in use, zeros where `outputIdx` is padded; (1, oWin, oSize)
        for a 2-D `h`.

    Raises
    ------
    TypeError
        For what is no tensor, a wrong number of dimensions, indices that are no integers, or a
        `padding_idx` that is none, or that an index's dtype cannot hold.
    ValueError
        For sizes that disagree, here or when the graph runs.
    IndexError
        For an index out of range, here if it is a constant and the number of blocks is known, or
        when the graph runs.

    Notes
    -----
    All dtypes are upcast together. Any integers are indices; negative ones count from the end,
    repeated ones accumulate. Where an index is padded, `h` may hold anything, nothing is multiplied
    or read, and no gradient passes. The function is Theano's
    ``tensor.nnet.blocksparse.sparse_block_dot``; ``padding_idx`` is PyTorch's name.

    Examples
    --------
    Two examples; each uses two of three input blocks and computes one of two output blocks.

    >>> import numpy as np
    >>> from blocksparse_ops import sparse_block_dot
    >>> W = np.ones((3, 2, 4, 5))
    >>> h = np.ones((2, 2, 4))
    >>> b = np.array([[10.0] * 5, [20.0] * 5])
    >>> sparse_block_dot(W, h, [[0, 1], [1, 2]], b, [[0], [1]]).eval()[:, 0, 0]
    array([18., 28.])

    The second example uses but one input block.

    >>> sparse_block_dot(W, h, [[0, 1], [1, -1]], b, [[0], [1]], padding_idx=-1).eval()[:, 0, 0]
    array([18., 24.])
    """
    padding_idx = as_padding(DOT.op, padding_idx)
    h, inputIdx, outputIdx = _with_batch(
        as_tensor(DOT.op, "h", h),
        as_block_index(DOT.op, "inputIdx", inputIdx),
        as_block_index(DOT.op, "outputIdx", outputIdx),
    )
    values = {"W": W, "h": h, "inputIdx": inputIdx, "b": b, "outputIdx": outputIdx}
    signature = DOT if b is not None else DOT_WITHOUT_BIAS
    arguments = {
        name: as_argument(signature, name, values[name], padding_idx) for name in signature.names
    }
    sizes = signature.static_sizes([x.type.shape for x in arguments.values()])
    check_constants(signature, arguments, sizes, padding_idx)
    W, h, inputIdx, outputIdx = (arguments[k] for k in ("W", "h", "inputIdx", "outputIdx"))
    dtype = upcast(*(x.dtype for name, x in arguments.items() if name not in signature.indexed))
    columns = W.shape[3] if b is None else columns_of(W, arguments["b"])
    o = zeros((h.shape[0], outputIdx.shape[1], columns), dtype)
    if b is not None:
        o = add_rows(o, arguments["b"], outputIdx, h.shape[0], padding_idx)
    return SparseBlockGemv(padding_idx=padding_idx)(o, W, h, inputIdx, outputIdx)


def _with_batch(
    h: TensorVariable, inputIdx: TensorVariable, outputIdx: TensorVariable
) -> tuple[TensorVariable, TensorVariable, TensorVariable]:
    """Make a 2-D `h` with its 1-D indices a batch of one."""
    if not (isinstance(h.type, DenseTensorType) and h.type.ndim == 2):
        return h, inputIdx, outputIdx
    for name, index in (("inputIdx", inputIdx), ("outputIdx", outputIdx)):
        if index.type.ndim != 1:
            raise TypeError(
                f"{DOT.op}: {name} has {index.type.ndim} dimensions, but a 2-D h is one example "
                "and takes 1-D indices; give h three dimensions for a batch"
            )
    return h[None], inputIdx[None], outputIdx[None]
