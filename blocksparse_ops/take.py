"""sparse_block_take: rows of a table, such as an embedding's."""

from __future__ import annotations

from math import prod

from pytensor.tensor.basic import stack
from pytensor.tensor.variable import TensorVariable

from blocksparse_ops.arguments import (
    TensorLike,
    as_argument,
    as_block_index,
    as_padding,
    check_constants,
)
from blocksparse_ops.bias import add_rows
from blocksparse_ops.signature import TAKE
from blocksparse_ops.zeros import zeros


def sparse_block_take(
    table: TensorLike, index: TensorLike, padding_idx: int | None = None
) -> TensorVariable:
    """``table[index]``, with a gradient that touches only the rows in use

    Parameters
    ----------
    table : (rows, columns)
        For instance an embedding, a row a token.
    index : (...)
        Which rows, of any number of dimensions.
    padding_idx : int, optional
        The index that names no row, so that windows may differ in length: for instance -1, which
        then is not the last row.

    Returns
    -------
    (..., columns)
        The rows, zeros where the index is padded.

    Raises
    ------
    TypeError
        For what is no tensor, a table that has not two dimensions, an index that holds no
        integers, or a `padding_idx` that is none, or that the index's dtype cannot hold.
    IndexError
        For an index out of range, here if it is a constant and the number of rows is known, or
        when the graph runs. It is then told as the outputIdx of a product.

    Notes
    -----
    It is a block-sparse product in which each row of the table is a block. So a step
    ``table - lr * gradient`` costs what the rows in use cost, however many there are, and is in
    place. Any integers are indices; negative ones count from the end, repeated ones accumulate in
    the gradient. PyTorch's ``padding_idx`` names a row that gets no gradient; this one names none,
    and no row need be there for it.

    Examples
    --------
    >>> import numpy as np
    >>> from blocksparse_ops import sparse_block_take
    >>> table = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    >>> sparse_block_take(table, [2, -3]).eval()
    array([[5., 6.],
           [1., 2.]])
    >>> sparse_block_take(table, [2, -1], padding_idx=-1).eval()
    array([[5., 6.],
           [0., 0.]])
    """
    padding_idx = as_padding(TAKE.op, padding_idx)
    index = as_block_index(TAKE.op, "index", index)
    table = as_argument(TAKE, "table", table)
    windows, shape = as_windows(index)
    windows = as_argument(TAKE, "index", windows, padding_idx)
    check_constants(TAKE, {"index": index}, {"j": table.type.shape[0]}, padding_idx)
    start = zeros((shape[0], shape[1], table.shape[1]), table.dtype)
    rows = add_rows(start, table, windows, shape[0], padding_idx)
    if index.type.ndim > 2:
        return rows.reshape((*index.shape, table.shape[1]), ndim=index.type.ndim + 1)
    return rows.dimshuffle(*range(2 - index.type.ndim, 3))


def as_windows(index: TensorVariable) -> tuple[TensorVariable, TensorVariable]:
    """An index as the windows of a product, and their number and length.

    Of less than two dimensions it is one window. PyTorch cannot compute what PyTensor says of the
    sizes of what is reshaped.
    """
    if index.type.ndim <= 2:
        windows = index.dimshuffle(*["x"] * (2 - index.type.ndim), *range(index.type.ndim))
        return windows, windows.shape
    sizes = [index.shape[k] if n is None else n for k, n in enumerate(index.type.shape)]
    shape = stack([prod(sizes[:-1]), sizes[-1]])
    return index.reshape(shape, ndim=2), shape
