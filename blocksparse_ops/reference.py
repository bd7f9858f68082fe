"""The mathematics in NumPy, grouped by block: what `perform` runs, for every dtype."""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from blocksparse_ops.signature import (
    GEMV,
    GRADIENT,
    OUTER,
    SIGNED_INDEX,
    UNSIGNED_INDEX,
    Signature,
    first_out_of_range,
)


def gemv(
    o: np.ndarray,
    W: np.ndarray,
    h: np.ndarray,
    inputIdx: np.ndarray,
    outputIdx: np.ndarray,
    *,
    inplace: bool = False,
    padding_idx: int | None = None,
) -> np.ndarray:
    """o[n, w] + sum_v h[n, v] @ W[inputIdx[n, v], outputIdx[n, w]], in o itself if `inplace`."""
    inputIdx, outputIdx = check(GEMV, (o, W, h, inputIdx, outputIdx), padding_idx)
    out = destination(o, inplace)
    for i, j, n, v, w in block_groups(inputIdx, outputIdx):
        np.add.at(out, (n, w), h[n, v] @ W[i, j])
    return out


def outer(
    o: np.ndarray,
    x: np.ndarray,
    y: np.ndarray,
    xIdx: np.ndarray,
    yIdx: np.ndarray,
    alpha: np.ndarray,
    *,
    inplace: bool = False,
    padding_idx: int | None = None,
) -> np.ndarray:
    """o[xIdx[n, v], yIdx[n, w]] += alpha * outer(x[n, v], y[n, w]), in o itself if `inplace`."""
    xIdx, yIdx = check(OUTER, (o, x, y, xIdx, yIdx, alpha), padding_idx)
    out = destination(o, inplace)
    if alpha == 0:
        return out
    for i, j, n, v, w in block_groups(xIdx, yIdx):
        out[i, j] += alpha * (x[n, v].T @ y[n, w])
    return out


def gradient(
    W: np.ndarray,
    x: np.ndarray,
    y: np.ndarray,
    xIdx: np.ndarray,
    yIdx: np.ndarray,
    alpha: np.ndarray,
    *,
    padding_idx: int | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The blocks of an outer product on zeros that an index names, and their values."""
    xIdx, yIdx = check(GRADIENT, (W, x, y, xIdx, yIdx, alpha), padding_idx)
    groups = list(block_groups(xIdx, yIdx))
    values = np.zeros((len(groups), x.shape[2], y.shape[2]), x.dtype)
    if alpha != 0:
        for value, (_, _, n, v, w) in zip(values, groups, strict=True):
            value += alpha * (x[n, v].T @ y[n, w])
    blocks = np.array([group[:2] for group in groups], np.int64).reshape(-1, 2)
    return *np.ascontiguousarray(blocks.T), values


# Stands for an index that names no block, among those that are counted from the start.
NO_BLOCK = -1


def check(
    signature: Signature, arrays: Sequence[np.ndarray], padding_idx: int | None = None
) -> list[npt.NDArray[np.int64]]:
    """Return the index arrays as int64 counted from the start, or raise what is wrong.

    Raises
    ------
    ValueError, OverflowError
        As `Signature.check_sizes` does.
    IndexError
        If an index lies outside [-blocks, blocks) of the axis whose blocks it names.
    """
    sizes = signature.check_sizes([array.shape for array in arrays])
    indices = []
    for name in signature.indexed:
        which = signature.names.index(name)
        index, blocks = arrays[which], sizes[signature.blocks_of(name)]
        where = first_out_of_range(index, blocks, padding_idx)
        if where is not None:
            kind = UNSIGNED_INDEX if index.dtype.kind == "u" else SIGNED_INDEX
            first, second = where
            value = int(index[where])
            signature.raise_fault(kind, which, first, second, value, blocks, padding_idx)
        indices.append(count_from_start(index, blocks, padding_idx))
    return indices


def count_from_start(
    index: np.ndarray, blocks: int, padding_idx: int | None = None
) -> npt.NDArray[np.int64]:
    """The same blocks as int64, NO_BLOCK or without a sign; all are in range."""
    block = index.astype(np.int64)
    block = np.where(block < 0, block + blocks, block)
    return block if padding_idx is None else np.where(index == padding_idx, NO_BLOCK, block)


def destination(o: np.ndarray, inplace: bool) -> np.ndarray:
    """Return `o` if it may be written: a view that repeats elements may not, even in place."""
    repeats = any(size > 1 and stride == 0 for size, stride in zip(o.shape, o.strides, strict=True))
    # Without elements all strides are 0.
    may_be_written = o.flags.writeable and not (repeats and o.size)
    return o if inplace and may_be_written else o.copy()


def block_groups(inputIdx: np.ndarray, outputIdx: np.ndarray) -> Iterator[tuple]:
    """Yield (i, j, n, v, w) for each block (i, j) in use, in the order in which these lie.

    n, v and w are arrays, an entry a triple.
    """
    i, j = np.broadcast_arrays(inputIdx[:, :, None], outputIdx[:, None, :])
    order = np.lexsort((j.ravel(), i.ravel()))
    order = order[((i != NO_BLOCK) & (j != NO_BLOCK)).ravel()[order]]
    if not order.size:
        return
    triples = np.unravel_index(order, i.shape)
    i, j = i.ravel()[order], j.ravel()[order]
    borders = np.flatnonzero((np.diff(i) != 0) | (np.diff(j) != 0)) + 1
    starts, ends = np.r_[0, borders], np.r_[borders, order.size]
    for start, end in zip(starts, ends, strict=True):
        yield i[start], j[start], *(axis[start:end] for axis in triples)
