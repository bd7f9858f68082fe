"""The plan for array libraries: triples of (example, input, output) in tiles of one block each.

JAX, PyTorch and MLX run no kernel of ours. There a product is a loop over steps; a step gathers a
few blocks, multiplies each by the rows of a tile, and scatters the results. So its working set is
the blocks of one step, and some integers for each triple.

The functions take the namespace `xp` of a library; what they use of it is called alike in all. An
array is Any: there is no type that the arrays of all libraries have.
"""

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

# The working set of a step, in elements, unless one tile needs more: it stays in L2.
STEP_ELEMENTS = 1 << 16

# With fewer triples a block, sorting them takes longer than reading the block once a triple: on two
# CPUs the times crossed between 2 and 4.
SORTED_REUSE = 4

# Rows of a tile. Padding costs products, so no more rows than a block is likely to have.
LEAST_ROWS, MOST_ROWS = 8, 32


class Sizes(NamedTuple):
    """What the shapes of the arguments say."""

    batch: int
    inputs: int
    outputs: int
    iBlocks: int
    oBlocks: int

    @property
    def triples(self) -> int:
        return self.batch * self.inputs * self.outputs


class Form(NamedTuple):
    """How a product is cut, chosen from shapes alone: rows of a tile, and tiles of a step."""

    rows: int
    tiles: int


class Tiles(NamedTuple):
    """Triples in the order of their blocks.

    Triple number `order[t]` stands at t; tile k has those from `starts[k]` to `starts[k + 1]`. Both
    are None if each triple is a tile. `steps` is the number of steps.
    """

    sizes: Sizes
    form: Form
    inputIdx: Any
    outputIdx: Any
    order: Any
    starts: Any
    steps: Any

    @property
    def most_steps(self) -> int:
        """The steps that the shapes alone allow; those past the last one are empty."""
        if self.starts is None:
            return self.steps
        return (self.starts.shape[0] - 1) // self.form.tiles


class Step(NamedTuple):
    """For each tile of a step, its rows on both sides and its block.

    `left` and `right` number the rows of the two windows, example after example. Where a tile has
    no more triples, or no block, they are the number of rows, one past the last.
    """

    left: Any
    right: Any
    i: Any
    j: Any


def sizes_of(inputIdx: Any, outputIdx: Any, blocks: Sequence[int]) -> Sizes:
    """The sizes of a product with these indices of so many blocks on either side."""
    batch, inputs = inputIdx.shape
    iBlocks, oBlocks = blocks
    return Sizes(batch, inputs, outputIdx.shape[1], iBlocks, oBlocks)


def reuse_of(sizes: Sizes) -> int:
    """The triples for each block, were all in use alike."""
    return sizes.triples // max(sizes.iBlocks * sizes.oBlocks, 1)


def most_tiles(sizes: Sizes, rows: int) -> int:
    """The tiles that these sizes can have at the most, with those that are out of range."""
    blocks = (sizes.iBlocks + 1) * (sizes.oBlocks + 1)
    return sizes.triples // rows + min(sizes.triples, blocks) if rows > 1 else sizes.triples


def choose_form(
    sizes: Sizes, depth: int, columns: int, *, step_elements: int = STEP_ELEMENTS
) -> Form:
    """How to cut a product with blocks of depth x columns into tiles and steps."""
    reuse = reuse_of(sizes)
    rows = 1
    if reuse >= SORTED_REUSE:
        rows = min(max(1 << reuse.bit_length() - 1, LEAST_ROWS), MOST_ROWS)
    of_tile = depth * columns + rows * (depth + columns)
    return Form(rows, max(1, min(step_elements // of_tile, most_tiles(sizes, rows))))


def dtype_name(values: Any) -> str:
    return str(values.dtype).split(".")[-1]


def unknown(values: Any) -> float | bool | np.integer:
    """What stands for a result that cannot be known: NaN, or what JAX fills integers with."""
    name = dtype_name(values)
    if "float" in name or "complex" in name:
        return np.nan
    if "bool" in name:
        return True
    limits = np.iinfo(name)
    # A number of Python's may have 63 bits.
    return limits.dtype.type(limits.max if limits.min == 0 else limits.min)


def is_padding(index: Any, padding: int) -> Any:
    """Where an index is that which names no block.

    Raises
    ------
    NotImplementedError
        If a library has given the index a narrower dtype, of which that is none: truncated, another
        would be taken for it.
    """
    name = dtype_name(index)
    numbers = 2 ** int(name.removeprefix("u").removeprefix("int"))
    least = -numbers // 2 if name.startswith("int") else 0
    if not least <= padding < least + numbers:
        raise NotImplementedError(
            f"padding_idx is {padding}, which an index of {name}, as this library makes of it, "
            "cannot hold. Use another, for instance the number of blocks, or mode NUMBA or CVM; "
            "JAX keeps 64 bits with jax_enable_x64"
        )
    return index == padding


def count_from_start(
    xp: ModuleType, index: Any, blocks: int, dtype: Any, padding: int | None = None
) -> Any:
    """The blocks that an index names, as integers of this dtype; `blocks` for none of them."""
    is_none = None if padding is None else is_padding(index, padding)
    if dtype_name(index) in ("uint32", "uint64"):
        # In the signed type a large one would be negative.
        index = xp.minimum(index, xp.array(blocks, dtype=index.dtype))
    index = index.astype(dtype)
    index = xp.where(index < 0, index + blocks, index)
    index = xp.where((index >= 0) & (index < blocks), index, blocks)
    return index if is_none is None else xp.where(is_none, blocks, index)


def is_unknown(
    xp: ModuleType,
    inputIdx: Any,
    outputIdx: Any,
    i: Any,
    j: Any,
    blocks: Sequence[int],
    padding: int | None,
) -> Any:
    """Which rows of the output an index out of range takes part in.

    `i` and `j` are what the indices count from the start.
    """
    iBlocks, oBlocks = blocks
    input_is_wrong = i == iBlocks
    if padding is not None:
        input_is_wrong = xp.logical_and(input_is_wrong, ~is_padding(inputIdx, padding))
    is_wrong = xp.logical_or(input_is_wrong.any(1, keepdims=True), j == oBlocks)
    return (
        is_wrong if padding is None else xp.logical_and(is_wrong, ~is_padding(outputIdx, padding))
    )


def sorted_by_block(xp: ModuleType, block: Any, sizes: Sizes) -> tuple[Any, Any]:
    """The blocks of all triples in ascending order, and the triples in that order."""
    triple = xp.arange(sizes.triples)
    keys = (sizes.iBlocks + 1) * (sizes.oBlocks + 1) * sizes.triples
    if keys > np.iinfo(dtype_name(block)).max:
        order = xp.argsort(block)
        return block[order], order
    # Both as one integer: to sort these takes XLA a sixth of the time of an argsort.
    key = xp.sort(block * sizes.triples + triple)
    return key // sizes.triples, key % sizes.triples


def cut(
    xp: ModuleType,
    inputIdx: Any,
    outputIdx: Any,
    sizes: Sizes,
    form: Form,
    searchsorted: Callable | None = None,
) -> Tiles:
    """Cut the triples into tiles. The indices are counted from the start."""
    searchsorted = searchsorted or xp.searchsorted
    left, right = inputIdx.reshape(-1), outputIdx.reshape(-1)
    if form.rows == 1:
        steps = -(-sizes.triples // form.tiles)
        return Tiles(sizes, form, left, right, None, None, steps)
    block = inputIdx[:, :, None] * (sizes.oBlocks + 1) + outputIdx[:, None, :]
    block, order = sorted_by_block(xp, block.reshape(-1), sizes)
    within = xp.arange(sizes.triples) - searchsorted(block, block)
    tile = xp.cumsum(within % form.rows == 0) - 1
    # Whole steps: those past the last tile are empty.
    most_steps = -(-most_tiles(sizes, form.rows) // form.tiles)
    ends = xp.arange(most_steps * form.tiles + 1)
    starts = searchsorted(tile, ends.astype(tile.dtype))
    return Tiles(sizes, form, left, right, order, starts, tile[-1] // form.tiles + 1)


def rows_of_step(xp: ModuleType, tiles: Tiles, step: Any) -> Step:
    """The rows and blocks of a step's tiles."""
    sizes, form = tiles.sizes, tiles.form
    number = step * form.tiles + xp.arange(form.tiles)
    if form.rows == 1:
        triple, end = number[:, None], sizes.triples
    else:
        triple = tiles.starts[number][:, None] + xp.arange(form.rows)
        end = tiles.starts[number + 1][:, None]
    used = triple < end
    triple = xp.minimum(triple, sizes.triples - 1)
    if form.rows > 1:
        triple = tiles.order[triple]
    left = triple // sizes.outputs
    right = left // sizes.inputs * sizes.outputs + triple % sizes.outputs
    i, j = tiles.inputIdx[left], tiles.outputIdx[right]
    # By functions, here and below: MLX maps `&` and `|` wrongly where one side alone is mapped.
    are_blocks = xp.logical_and(i < sizes.iBlocks, j < sizes.oBlocks)
    used = xp.logical_and(used, are_blocks)
    left = xp.where(used, left, sizes.batch * sizes.inputs)
    right = xp.where(used, right, sizes.batch * sizes.outputs)
    return Step(left, right, i[:, 0], j[:, 0])
