"""Both ops for JAX where the blocks of all examples, or of some at a time, are gathered at once."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from blocksparse_ops.kernels.thresholds import GATHERED_BYTES
from blocksparse_ops.kernels.tiles import SORTED_REUSE, Sizes, reuse_of

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


def is_on_gpu() -> bool:
    """Whether JAX computes on a GPU, or on anything else that is no CPU."""
    return jax.default_backend() != "cpu"


def add_at(values: Array, positions: Any, terms: Array) -> Array:
    """values[positions] += terms, with repeated positions; what lies outside is left out."""
    selected, terms = values.at[positions], terms.astype(values.dtype)
    return (selected.max if values.dtype == jnp.bool_ else selected.add)(terms, mode="drop")


def gather(W: Array, i: Array, j: Array, transposed: bool, may_be_none: bool = False) -> Array:
    """Blocks; what is none of them is zeros if it `may_be_none`, and else any block."""
    blocks = W.at[(j, i) if transposed else (i, j)]
    return blocks.get(mode="fill", fill_value=0) if may_be_none else blocks.get(mode="clip")


def pinned(values: Array, *shape: int) -> Array:
    """Values in this shape, which on a CPU XLA does not see through.

    Of two reshapes in a row, of which a product has one on each side, it makes a copy there.
    """
    values = values.reshape(shape)
    return values if is_on_gpu() else jax.lax.optimization_barrier(values)


def columns_to_gather(W: Array, inputs: int) -> int:
    """How many columns the gathered blocks have: those of a vector, if zeros are to fill it."""
    columns, lanes = W.shape[3], LANES.get(W.dtype.name, 0)
    are_few = FILLED_COLUMNS <= columns < lanes
    are_long = inputs * W.shape[2] >= FILLED_ROWS
    is_cached = W.size * W.dtype.itemsize <= CACHED_BYTES
    return lanes if are_few and are_long and is_cached and not is_on_gpu() else columns


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
    """Of outputs of size 1: a loop over all, where of a product XLA makes a short one for each."""
    blocks = gather(W, i[:, :, None], j[:, None, :], transposed, may_be_none)
    depths = blocks.reshape(*blocks.shape[:3], -1)
    places = np.ndindex(h.shape[1:])
    return sum(h[:, v, k, None] * depths[:, v, :, k] for v, k in places)[:, :, None]


def multiply_by_matrices(
    h: Array, W: Array, i: Array, j: Array, transposed: bool, may_be_none: bool
) -> Array:
    """Of all others."""
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


def examples_of_step(sizes: Sizes, blocks: Array, columns: int) -> int:
    """How many examples to gather all blocks of at a time; 0 if there is a better way.

    Blocks of what is written out count, too: beside other uses of them XLA gathers them after all.
    """
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
