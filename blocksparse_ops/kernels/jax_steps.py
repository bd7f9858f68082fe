"""Both ops for JAX, computed: a gather of what is small, and else loops over tiles."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from blocksparse_ops.kernels.jax_constants import Constants, cut_by_block, places_of
from blocksparse_ops.kernels.mapped import fold
from blocksparse_ops.kernels.thresholds import GATHERED_BYTES
from blocksparse_ops.kernels.tiles import (
    SORTED_REUSE,
    Sizes,
    choose_form,
    count_from_start,
    is_padding,
    reuse_of,
    rows_of_step,
    sizes_of,
    unknown,
)

# The working set of a step over windows, in elements, unless one block is larger.
WINDOW_ELEMENTS = 1 << 17

# On a GPU each step is a launch of kernels, and more of them to sort for it.
GATHERED_BYTES_OF_GPU = 1 << 30

# Sums of so many products at the most are written out, where inputs or outputs are of size 1.
UNROLLED_PRODUCTS = 16

# Below so many elements of a block, sorting takes longer than it saves.
SORTED_BLOCK = 256

# On a CPU XLA multiplies by columns that fill no vector one by one, which takes up to 2.4 times as
# long as a whole vector of them. From so many columns and so many rows on it pays to fill it, in
# weights that a cache holds: of others it took up to twice as long.
LANES = {"float32": 8, "float64": 4}
FILLED_COLUMNS, FILLED_ROWS = 3, 4
CACHED_BYTES = 1 << 24


def counted(index: Array, blocks: int, padding: int | None = None) -> Array:
    return count_from_start(jnp, index, blocks, int, padding)


def countable_sizes(inputIdx: Array, outputIdx: Array, blocks: Sequence[int]) -> Sizes:
    sizes = sizes_of(inputIdx, outputIdx, blocks)
    if sizes.triples >= jnp.iinfo(jnp.arange(0).dtype).max // 2:
        raise OverflowError(
            f"a block-sparse product of {sizes.triples} triples of (example, input, output): too "
            "many for JAX to number; use a smaller batch, or switch jax_enable_x64 on"
        )
    return sizes


def rows(values: Array) -> Array:
    """The rows of all windows one after the other, and one of zeros: for what is out of range."""
    return jnp.pad(fold(values), ((0, 1), (0, 0)))


def add_at(values: Array, positions: Any, terms: Array) -> Array:
    """values[positions] += terms, with repeated positions; what lies outside is left out."""
    selected, terms = values.at[positions], terms.astype(values.dtype)
    return (selected.max if values.dtype == jnp.bool_ else selected.add)(terms, mode="drop")


def gather(W: Array, i: Array, j: Array, transposed: bool, may_be_none: bool = False) -> Array:
    """Blocks; what is none of them is zeros if it `may_be_none`, and else any block."""
    blocks = W.at[(j, i) if transposed else (i, j)]
    return blocks.get(mode="fill", fill_value=0) if may_be_none else blocks.get(mode="clip")


def add_by_block(
    sums: Array,
    W: Array,
    h: Array,
    inputIdx: Array,
    outputIdx: Array,
    sizes: Sizes,
    transposed: bool,
    padding: int | None,
    constants: Constants | None,
) -> Array:
    """Add the products to the rows of all outputs, tile by tile of one block each."""
    form = choose_form(sizes, *W.shape[2:])
    tiles = cut_by_block(inputIdx, outputIdx, sizes, form, padding, constants)
    left = rows(h)
    product = "krq,kpq->krp" if transposed else "krp,kpq->krq"

    def add_step(number: Array, sums: Array) -> Array:
        step = rows_of_step(jnp, tiles, number)
        blocks = gather(W, step.i, step.j, transposed)
        return add_at(sums, step.right, jnp.einsum(product, left[step.left], blocks))

    return jax.lax.fori_loop(0, tiles.steps, add_step, sums)


def parts_of(inputs: int, block: int) -> int:
    """Into how many equal parts to cut the blocks of one output for a step to hold a part."""
    parts = (n for n in range(1, inputs) if inputs % n == 0)
    return next((n for n in parts if inputs // n * block <= WINDOW_ELEMENTS), inputs)


def add_by_window(
    sums: Array,
    W: Array,
    h: Array,
    inputIdx: Array,
    outputIdx: Array,
    sizes: Sizes,
    transposed: bool,
    may_be_none: bool,
) -> Array:
    """Add the products to the rows of all outputs, a few outputs with their whole windows a step.

    Where blocks are read once or twice, sorting them does not pay; the blocks of one output are a
    matrix by which all its inputs, taken as one row, are multiplied.
    """
    block = W.shape[2] * W.shape[3]
    parts = parts_of(sizes.inputs, block)
    x = h.reshape(sizes.batch * parts, sizes.inputs // parts, -1)
    i, j = inputIdx.reshape(x.shape[:2]), outputIdx.reshape(-1, 1)
    total = sizes.batch * parts * sizes.outputs
    of_step = min(max(WINDOW_ELEMENTS // (x.shape[1] * block), 1), total)

    def add_step(number: Array, sums: Array) -> Array:
        term = number * of_step + jnp.arange(of_step)
        part, output = jnp.divmod(jnp.minimum(term, total - 1), sizes.outputs)
        row = part // parts * sizes.outputs + output
        blocks = gather(W, i[part], j[row], transposed, may_be_none)
        if transposed:
            products = jnp.einsum("kvq,kvpq->kvp", x[part], blocks).sum(1)
        else:
            # Row by row of all blocks at once, so that their cache misses overlap.
            blocks = blocks.swapaxes(1, 2).reshape(of_step, -1, blocks.shape[-1])
            products = (x[part].mT.reshape(of_step, 1, -1) @ blocks)[:, 0]
        return add_at(sums, jnp.where(term < total, row, len(sums)), products)

    return jax.lax.fori_loop(0, -(-total // of_step), add_step, sums)


def pinned(values: Array, *shape: int) -> Array:
    """Values in this shape, which on a CPU XLA does not see through.

    Of two reshapes in a row, of which a product has one on each side, it makes a copy there.
    """
    values = values.reshape(shape)
    return values if is_on_gpu() else jax.lax.optimization_barrier(values)


def columns_to_gather(W: Array, inputs: int) -> int:
    """How many columns the gathered blocks have: those of a vector, if zeros are to fill it."""
    columns, lanes = W.shape[3], LANES.get(W.dtype.name, 0)
    is_worth = FILLED_COLUMNS <= columns < lanes and inputs * W.shape[2] >= FILLED_ROWS
    is_cached = W.size * W.dtype.itemsize <= CACHED_BYTES
    return lanes if is_worth and is_cached and not is_on_gpu() else columns


def multiply(h: Array, W: Array, i: Array, j: Array, transposed: bool, may_be_none: bool) -> Array:
    """The sums over windows and depths, of as many examples as may be gathered at once."""
    multiply_gathered = multiply_by_matrices
    if h.shape[1] * h.shape[2] <= UNROLLED_PRODUCTS:
        if h.shape[2] == 1 and not transposed:
            multiply_gathered = add_rows
        elif W.shape[2 if transposed else 3] == 1 and not is_on_gpu():
            multiply_gathered = add_numbers
    return multiply_gathered(h, W, i, j, transposed, may_be_none)


def add_rows(h: Array, W: Array, i: Array, j: Array, transposed: bool, may_be_none: bool) -> Array:
    """Of inputs of size 1: XLA makes one loop of gathers, products and sums."""
    rows = (
        gather(W, i[:, None, v : v + 1], j[:, :, None], transposed, may_be_none)[:, :, 0, 0]
        for v in range(h.shape[1])
    )
    return sum(h[:, v, None] * row for v, row in enumerate(rows))


def add_numbers(
    h: Array, W: Array, i: Array, j: Array, transposed: bool, may_be_none: bool
) -> Array:
    """Of outputs of size 1: one loop, too, where of a product XLA makes a short one for each."""
    blocks = gather(W, i[:, :, None], j[:, None, :], transposed, may_be_none)
    depths = blocks.reshape(*blocks.shape[:3], -1)
    places = np.ndindex(h.shape[1:])
    return sum(h[:, v, k, None] * depths[:, v, :, k] for v, k in places)[:, :, None]


def multiply_by_matrices(
    h: Array, W: Array, i: Array, j: Array, transposed: bool, may_be_none: bool
) -> Array:
    batch, outputs = j.shape
    if transposed:
        blocks = gather(W, i[:, :, None], j[:, None, :], transposed, may_be_none)
        matrices = blocks.reshape(*i.shape, -1, blocks.shape[-1])
        rows = pinned(h, -1, h.shape[2]).reshape(h.shape)
        sums = jnp.einsum("nvq,nvkq->nvk", rows, matrices).sum(1)
    else:
        # The blocks of one output as one matrix, by which its inputs, as one row, are multiplied.
        blocks = gather(W, i[:, None, :], j[:, :, None], transposed, may_be_none)
        columns, added = W.shape[3], columns_to_gather(W, h.shape[1]) - W.shape[3]
        matrices = jnp.pad(blocks, [(0, 0)] * 4 + [(0, added)]).reshape(
            batch, outputs, -1, columns + added
        )
        sums = (pinned(h, batch, -1)[:, None, None] @ matrices)[..., :columns]
    size = W.shape[2 if transposed else 3]
    return pinned(pinned(sums, -1, size), -1).reshape(batch, outputs, size)


def are_all(index: np.ndarray, blocks: int) -> bool:
    return np.array_equal(index, np.arange(blocks))


def gemv_of_shared_windows(
    o: Array, W: Array, h: Array, i: np.ndarray, j: np.ndarray, transposed: bool
) -> Array:
    """A dense product with the blocks of the one window of all examples."""
    first, second = (j, i) if transposed else (i, j)
    is_whole = are_all(first, W.shape[0]) and are_all(second, W.shape[1])
    blocks = W if is_whole else W[np.ix_(first, second)]
    product = jnp.einsum("nvq,wvpq->nwp" if transposed else "nvp,vwpq->nwq", h, blocks)
    return o + product.astype(o.dtype)


def outer_of_shared_windows(o: Array, x: Array, y: Array, i: np.ndarray, j: np.ndarray) -> Array:
    products = jnp.einsum("nvp,nwq->vwpq", x, y)
    if are_all(i, o.shape[0]) and are_all(j, o.shape[1]):
        return o + products.astype(o.dtype)
    return add_at(o, np.ix_(i, j), products)


def is_on_gpu() -> bool:
    """Whether JAX computes on a GPU, or on anything else that is no CPU."""
    return jax.default_backend() != "cpu"


def examples_of_step(sizes: Sizes, blocks: Array, columns: int) -> int:
    """How many examples to gather all blocks of at a time; 0 if there is a better way."""
    block = blocks.shape[2] * columns
    gathered = sizes.triples * block * blocks.dtype.itemsize
    if gathered <= (GATHERED_BYTES_OF_GPU if is_on_gpu() else GATHERED_BYTES):
        return sizes.batch
    if is_on_gpu():
        return max(GATHERED_BYTES_OF_GPU * sizes.batch // gathered, 1)
    if reuse_of(sizes) >= SORTED_REUSE and block >= SORTED_BLOCK:
        return 0
    return WINDOW_ELEMENTS // (sizes.inputs * sizes.outputs * block)


def some_of(values: Array, start: Array, count: int) -> Array:
    return jax.lax.dynamic_slice_in_dim(values, start, count)


def gemv_by_example(
    o: Array,
    W: Array,
    h: Array,
    inputIdx: Array,
    outputIdx: Array,
    of_step: int,
    transposed: bool,
    may_be_none: bool,
) -> Array:
    """Gather all blocks of some examples at a time."""

    def result_of(o: Array, h: Array, i: Array, j: Array) -> Array:
        return o + multiply(h, W, i, j, transposed, may_be_none).astype(o.dtype)

    batch = len(o)
    if of_step >= batch:
        return result_of(o, h, inputIdx, outputIdx)

    def add_step(number: Array, result: Array) -> Array:
        # The last step computes some examples again.
        start = jnp.minimum(number * of_step, batch - of_step)
        arguments = (some_of(x, start, of_step) for x in (o, h, inputIdx, outputIdx))
        return jax.lax.dynamic_update_slice_in_dim(result, result_of(*arguments), start, 0)

    return jax.lax.fori_loop(0, -(-batch // of_step), add_step, o)


def gemv_in_steps(
    o: Array,
    W: Array,
    h: Array,
    inputIdx: Array,
    outputIdx: Array,
    *,
    transposed: bool,
    padding: int | None = None,
    constants: Constants | None = None,
) -> Array:
    """o[n, w] + sum_v h[n, v] @ W[inputIdx[n, v], outputIdx[n, w]]

    With `transposed` it is W[outputIdx[n, w], inputIdx[n, v]].T that is multiplied by, where it
    lies. A result that an index out of range takes part in is NaN.
    """
    iBlocks, oBlocks = W.shape[1::-1] if transposed else W.shape[:2]
    sizes = countable_sizes(inputIdx, outputIdx, (iBlocks, oBlocks))
    shared = constants.shared_windows((iBlocks, oBlocks)) if constants and padding is None else None
    if shared is not None:
        return gemv_of_shared_windows(o, W, h, *shared, transposed)
    i, j, wrong = places_of(inputIdx, outputIdx, (iBlocks, oBlocks), padding, constants)
    may_be_none = padding is not None
    if padding is not None:
        h = jnp.where(is_padding(inputIdx, padding)[:, :, None], 0, h)
    result = o
    if sizes.triples and W.size:
        how = {"transposed": transposed, "may_be_none": may_be_none}
        columns = W.shape[3] if transposed else columns_to_gather(W, sizes.inputs)
        if of_step := examples_of_step(sizes, W, columns):
            can_hold_nan = jnp.issubdtype(h.dtype, jnp.inexact)
            if wrong is not None and sizes.outputs == 1 and h.size < o.size and can_hold_nan:
                # Of one output all is NaN if what is multiplied is, which is less to go over.
                h, wrong = jnp.where(wrong[:, :, None], jnp.nan, h), None
            result = gemv_by_example(o, W, h, i, j, of_step, **how)
        elif reuse_of(sizes) >= SORTED_REUSE:
            sums = add_by_block(fold(o), W, h, i, j, sizes, transposed, padding, constants)
            result = sums.reshape(o.shape)
        else:
            result = add_by_window(fold(o), W, h, i, j, sizes, **how).reshape(o.shape)
    if padding is not None:
        result = jnp.where(is_padding(outputIdx, padding)[:, :, None], o, result)
    if wrong is not None:
        result = jnp.where(wrong[:, :, None], unknown(o), result)
    return result.astype(o.dtype)


def outer_by_example(o: Array, x: Array, y: Array, xIdx: Array, yIdx: Array, of_step: int) -> Array:
    """Make all products of some examples at a time."""

    def add(o: Array, x: Array, y: Array, i: Array, j: Array) -> Array:
        products = x[:, :, None, :, None] * y[:, None, :, None, :]
        return add_at(o, (i[:, :, None], j[:, None, :]), products)

    batch = len(x)
    if of_step >= batch:
        return add(o, x, y, xIdx, yIdx)

    def add_step(number: Array, o: Array) -> Array:
        start = jnp.minimum(number * of_step, batch - of_step)
        x_, y_, i, j = (some_of(values, start, of_step) for values in (x, y, xIdx, yIdx))
        # What the last step has in common with the one before it is left out.
        again = start + jnp.arange(of_step) < number * of_step
        return add(o, x_, y_, jnp.where(again[:, None], len(o), i), j)

    return jax.lax.fori_loop(0, -(-batch // of_step), add_step, o)


def outer_in_steps(
    o: Array,
    x: Array,
    y: Array,
    xIdx: Array,
    yIdx: Array,
    *,
    padding: int | None = None,
    constants: Constants | None = None,
) -> Array:
    """o[xIdx[n, v], yIdx[n, w]] += outer(x[n, v], y[n, w]), without what is out of range."""
    sizes = countable_sizes(xIdx, yIdx, o.shape[:2])
    if not sizes.triples or not o.size:
        return o
    shared = constants.shared_windows(o.shape[:2]) if constants and padding is None else None
    if shared is not None:
        return outer_of_shared_windows(o, x, y, *shared)
    xIdx, yIdx = counted(xIdx, sizes.iBlocks, padding), counted(yIdx, sizes.oBlocks, padding)
    if of_step := examples_of_step(sizes, o, o.shape[3]):
        return outer_by_example(o, x, y, xIdx, yIdx, of_step)
    form = choose_form(sizes, *o.shape[2:])
    tiles = cut_by_block(xIdx, yIdx, sizes, form, padding, constants)
    left, right = rows(x), rows(y)

    def add_step(number: Array, o: Array) -> Array:
        step = rows_of_step(jnp, tiles, number)
        products = jnp.einsum("krp,krq->kpq", left[step.left], right[step.right])
        return add_at(o, (step.i, step.j), products)

    return jax.lax.fori_loop(0, tiles.steps, add_step, o)
