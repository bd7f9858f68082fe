"""Both ops for JAX, computed: a gather of what is small, and else loops over tiles."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from blocksparse_ops.kernels.jax_constants import Constants, cut_by_block, places_of
from blocksparse_ops.kernels.jax_gathered import (
    WINDOW_ELEMENTS,
    add_at,
    columns_to_gather,
    examples_of_step,
    gather,
    gemv_by_example,
    outer_by_example,
)
from blocksparse_ops.kernels.mapped import fold
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
