"""What two index arrays ask for: how often each block is used, what that costs, how it looks.

Nothing here is needed to compute: it answers whether block sparsity pays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from operator import index as as_index
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from blocksparse_ops.arguments import (
    as_padding,
    as_tensor,
    require_integers,
    require_padding,
)
from blocksparse_ops.kernels.tiles import SORTED_REUSE, Sizes, choose_form, reuse_of, sizes_of
from blocksparse_ops.reference import NO_BLOCK, count_from_start
from blocksparse_ops.signature import check_range, disagreement

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# How figures are printed that are neither strings nor integers.
FORMATS = {"reuse": ".2f", "share_of_dense": ".2%"}


@dataclass(frozen=True)
class PatternCosts:
    """What one forward product takes; printed, a line a figure.

    Attributes
    ----------
    examples : int
        The batch.
    blocks_in_use : int
        Different blocks of the weights that some example uses.
    reuse : float
        How many triples (example, input, output) there are for each block in use. A block is read
        once for all of them, so below about two the product is memory-bound.
    multiply_adds : int
    share_of_dense : float
        Of the multiply-adds of ``x @ W`` with all blocks as one matrix.
    bytes_read : int
        What must be read at least once: the blocks in use and the windows' values.
    bytes_gathered : int
        What a copy of the blocks for each example would take, as array libraries make it of what
        is small, and no backend of the rest.
    kernel_path : str
        What the C++ and Numba kernels do: "one pattern" if all examples use the same blocks, which
        then need no sorting, else "block by block"; small blocks as the examples stand.
    library_path : str
        What JAX, PyTorch and MLX do: "as it stands", or, from four triples on for each of all
        blocks, in use or not, "in tiles of n rows", sorted by block. What is small they gather.
    """

    examples: int
    blocks_in_use: int
    reuse: float
    multiply_adds: int
    share_of_dense: float
    bytes_read: int
    bytes_gathered: int
    kernel_path: str
    library_path: str

    def __str__(self) -> str:
        lines = []
        for name, value in asdict(self).items():
            form = FORMATS.get(name, "" if isinstance(value, str) else ",")
            lines.append(f"{name.replace('_', ' '):<15} {value:{form}}")
        return "\n".join(lines)


def pattern_costs(
    W_shape: Sequence[int],
    inputIdx: npt.ArrayLike,
    outputIdx: npt.ArrayLike,
    dtype: npt.DTypeLike = "float64",
    padding_idx: int | None = None,
) -> PatternCosts:
    """``multiply_adds = triples * iSize * oSize``, and what else a product costs.

    Parameters
    ----------
    W_shape : (iBlocks, oBlocks, iSize, oSize)
        The shape of the weights, of which no values are needed.
    inputIdx : (batch, iWin), or (iWin,)
        Which input blocks each example uses.
    outputIdx : (batch, oWin), or (oWin,)
        Which output blocks each example computes.
    dtype : data-type, optional
        Of the weights and the values.
    padding_idx : int, optional
        The index that names no block, of either index.

    Returns
    -------
    PatternCosts

    Raises
    ------
    TypeError
        For what is not four sizes, or indices that are no integers, or have neither both one nor
        both two dimensions.
    ValueError
        For batches that differ.
    IndexError
        For an index out of range.

    Examples
    --------
    Three examples of two input blocks and one output block each. The last two use the same blocks.

    >>> from blocksparse_ops.pattern import pattern_costs
    >>> shape, inputIdx, outputIdx = (3, 100, 4, 5), [[0, 1], [0, 2], [0, 2]], [[7], [99], [99]]
    >>> costs = pattern_costs(shape, inputIdx, outputIdx, "float32")
    >>> print(costs)
    examples        3
    blocks in use   4
    reuse           1.50
    multiply adds   120
    share of dense  0.67%
    bytes read      416
    bytes gathered  480
    kernel path     block by block
    library path    as it stands
    """
    iBlocks, oBlocks, *block = as_sizes(
        "pattern_costs", "W_shape", W_shape, "(iBlocks, oBlocks, iSize, oSize)"
    )
    blocks = (iBlocks, oBlocks)
    inputIdx, outputIdx = counted_pattern("pattern_costs", blocks, inputIdx, outputIdx, padding_idx)
    sizes = sizes_of(inputIdx, outputIdx, blocks)
    products, item = int(np.prod(block)), np.dtype(dtype).itemsize
    pairs, times = used_pairs(inputIdx, outputIdx, oBlocks)
    used, triples = len(pairs), int(times.sum())
    rows = int((inputIdx != NO_BLOCK).sum())
    is_padded = triples < sizes.triples
    is_one = same_window(inputIdx) and same_window(outputIdx) and not is_padded
    dense = sizes.batch * iBlocks * oBlocks
    return PatternCosts(
        examples=sizes.batch,
        blocks_in_use=used,
        reuse=triples / max(used, 1),
        multiply_adds=triples * products,
        share_of_dense=triples / max(dense, 1),
        bytes_read=(used * products + rows * block[0]) * item,
        bytes_gathered=sizes.triples * products * item,
        kernel_path="one pattern" if is_one else "block by block",
        library_path=library_path(sizes, block),
    )


def draw_pattern(
    inputIdx: npt.ArrayLike,
    outputIdx: npt.ArrayLike,
    blocks: Sequence[int],
    ax: Axes | None = None,
    padding_idx: int | None = None,
) -> Axes:
    """A picture of `block_counts`: ``count[i, j]`` at row i and column j, white where it is 0.

    Parameters
    ----------
    inputIdx : (batch, iWin), or (iWin,)
        Which input blocks each example uses: rows of the picture.
    outputIdx : (batch, oWin), or (oWin,)
        Which output blocks each example computes: columns of the picture.
    blocks : (iBlocks, oBlocks)
        How many there are.
    ax : matplotlib.axes.Axes, optional
        Where to draw; a new figure's by default.
    padding_idx : int, optional
        The index that names no block, of either index.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    TypeError
        For what is not two sizes, or indices that are no integers, or have neither both one nor
        both two dimensions.
    ValueError
        For batches that differ.
    IndexError
        For an index out of range.
    ImportError
        Without matplotlib, which ``pip install 'blocksparse_ops[plot]'`` brings.

    Examples
    --------
    >>> from blocksparse_ops.pattern import draw_pattern
    >>> ax = draw_pattern([[0, 1], [0, 2], [0, 2]], [[7], [9], [9]], (3, 10))
    >>> ax.get_title()
    '4 of 30 blocks in use, 1.5 times each'
    """
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator
    except ImportError as error:
        raise ImportError(
            "draw_pattern draws with matplotlib, which is not installed: "
            "pip install 'blocksparse_ops[plot]'"
        ) from error
    count = count_blocks("draw_pattern", inputIdx, outputIdx, blocks, padding_idx)
    used = int(np.count_nonzero(count))
    times = count.sum() / max(used, 1)
    ax = ax if ax is not None else Figure(layout="constrained").add_subplot()
    image = ax.imshow(
        np.ma.masked_equal(count, 0),
        aspect="auto",
        interpolation="nearest",
        vmin=0,
        vmax=max(np.max(count, initial=0), 1),
        cmap="viridis",
        # With no blocks, a size of 0 would be an axis of no length.
        extent=(-0.5, max(blocks[1], 1) - 0.5, max(blocks[0], 1) - 0.5, -0.5),
    )
    bar = ax.figure.colorbar(image, ax=ax, label="times used")
    for axis in (ax.xaxis, ax.yaxis, bar.ax.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True))
    ax.set(
        xlabel="output block",
        ylabel="input block",
        title=f"{used:,} of {count.size:,} blocks in use, {times:.3g} times each",
    )
    return ax


def block_counts(
    inputIdx: npt.ArrayLike,
    outputIdx: npt.ArrayLike,
    blocks: Sequence[int],
    padding_idx: int | None = None,
) -> npt.NDArray[np.int64]:
    """``count[i, j] = how many (n, v, w) have inputIdx[n, v] == i and outputIdx[n, w] == j``

    Parameters
    ----------
    inputIdx : (batch, iWin), or (iWin,)
    outputIdx : (batch, oWin), or (oWin,)
    blocks : (iBlocks, oBlocks)
    padding_idx : int, optional
        The index that names no block, of either index.

    Returns
    -------
    (iBlocks, oBlocks) of int64

    Raises
    ------
    TypeError
        For what is not two sizes, or indices that are no integers, or have neither both one nor
        both two dimensions.
    ValueError
        For batches that differ.
    IndexError
        For an index out of range.

    Examples
    --------
    >>> from blocksparse_ops.pattern import block_counts
    >>> block_counts([[0, 1], [0, -1]], [[0], [1]], (3, 2))
    array([[1, 1],
           [1, 0],
           [0, 1]])
    >>> block_counts([[0, 1], [0, -1]], [[0], [1]], (3, 2), padding_idx=-1)
    array([[1, 1],
           [1, 0],
           [0, 0]])
    """
    return count_blocks("block_counts", inputIdx, outputIdx, blocks, padding_idx)


def count_blocks(
    caller: str,
    inputIdx: npt.ArrayLike,
    outputIdx: npt.ArrayLike,
    blocks: Sequence[int],
    padding_idx: int | None,
) -> npt.NDArray[np.int64]:
    blocks = as_sizes(caller, "blocks", blocks, "(iBlocks, oBlocks)")
    inputIdx, outputIdx = counted_pattern(caller, blocks, inputIdx, outputIdx, padding_idx)
    count = np.zeros(blocks, "int64")
    pairs, times = used_pairs(inputIdx, outputIdx, blocks[1])
    count.flat[pairs] = times
    return count


def as_sizes(caller: str, name: str, sizes: Sequence[int], expected: str) -> tuple[int, ...]:
    """Return sizes as a tuple of as many integers as `expected` names."""
    try:
        found = tuple(as_index(size) for size in sizes)
    except TypeError:
        found = ()
    if len(found) != len(expected.split(",")) or any(size < 0 for size in found):
        raise TypeError(f"{caller}: {name} is {sizes!r}; expected the sizes {expected}")
    return found


def counted_pattern(
    caller: str,
    blocks: Sequence[int],
    inputIdx: npt.ArrayLike,
    outputIdx: npt.ArrayLike,
    padding_idx: int | None = None,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Both indices, example by example and counted from the start; errors name the caller."""
    padding_idx = as_padding(caller, padding_idx)
    indices = [
        counted_index(caller, name, index, size, padding_idx)
        for name, index, size in zip(
            ("inputIdx", "outputIdx"), (inputIdx, outputIdx), blocks, strict=True
        )
    ]
    dimensions = [index.ndim for index in indices]
    if dimensions not in ([1, 1], [2, 2]):
        raise TypeError(
            f"{caller}: inputIdx has {dimensions[0]} dimensions and outputIdx {dimensions[1]}; "
            "expected one each, or two each for a batch"
        )
    inputIdx, outputIdx = map(np.atleast_2d, indices)
    batches = len(inputIdx), len(outputIdx)
    if batches[0] != batches[1]:
        names = "inputIdx.shape[0]", "outputIdx.shape[0]"
        raise ValueError(disagreement(caller, names[0], batches[0], names[1], batches[1]))
    return inputIdx, outputIdx


def counted_index(
    caller: str, name: str, index: npt.ArrayLike, blocks: int, padding_idx: int | None
) -> npt.NDArray[np.int64]:
    array = as_tensor(caller, name, index, np.asarray)
    if isinstance(index, list | tuple) and not array.size:
        array = array.astype("int64")
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    require_integers(caller, name, array)
    require_padding(caller, name, array, padding_idx)
    axis = f"the number of {name[:-3]} blocks"
    check_range(f"{caller}: {name}", array, axis, blocks, padding_idx)
    return count_from_start(array, blocks, padding_idx)


def used_pairs(
    inputIdx: npt.NDArray[np.int64], outputIdx: npt.NDArray[np.int64], oBlocks: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The blocks in use, numbered row by row, and how often each is."""
    i, j = np.broadcast_arrays(inputIdx[:, :, None], outputIdx[:, None, :])
    is_block = (i != NO_BLOCK) & (j != NO_BLOCK)
    return np.unique((i * oBlocks + j)[is_block], return_counts=True)


def same_window(index: np.ndarray) -> bool:
    """Whether all examples have the same."""
    return bool((index == index[:1]).all())


def library_path(sizes: Sizes, block: Sequence[int]) -> str:
    if reuse_of(sizes) < SORTED_REUSE:
        return "as it stands"
    return f"in tiles of {choose_form(sizes, *block).rows} rows"
