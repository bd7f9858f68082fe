"""Both ops for JAX, as primitives: loops over tiles, which differentiate into each other.

A loop that JAX differentiates by itself would keep all blocks that it gathered. The primitives are
linear in what is added to and in each factor, so the rules say which of the two each derivative is.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from blocksparse_ops.kernels.mapped import Axes, fold, map_gemv, map_outer
from blocksparse_ops.kernels.tiles import (
    SORTED_REUSE,
    Sizes,
    choose_form,
    count_from_start,
    cut,
    reuse_of,
    rows_of_step,
    sizes_of,
    unknown,
)

# The working set of a step over windows, in elements, unless one block is larger.
WINDOW_ELEMENTS = 1 << 17

# In each argument, None where none is asked for.
Gradients: TypeAlias = tuple[Array | None, ...]


def counted(index: Array, blocks: int) -> Array:
    return count_from_start(jnp, index, blocks, int)


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


def gather(W: Array, i: Array, j: Array, transposed: bool) -> Array:
    return W.at[(j, i) if transposed else (i, j)].get(mode="clip")


def add_by_block(
    sums: Array,
    W: Array,
    h: Array,
    inputIdx: Array,
    outputIdx: Array,
    sizes: Sizes,
    transposed: bool,
) -> Array:
    """Add the products to the rows of all outputs, tile by tile of one block each."""
    tiles = cut(jnp, inputIdx, outputIdx, sizes, choose_form(sizes, *W.shape[2:]))
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
        blocks = gather(W, i[part], j[row], transposed)
        if transposed:
            products = jnp.einsum("kvq,kvpq->kvp", x[part], blocks).sum(1)
        else:
            # Row by row of all blocks at once, so that their cache misses overlap.
            blocks = blocks.swapaxes(1, 2).reshape(of_step, -1, blocks.shape[-1])
            products = (x[part].mT.reshape(of_step, 1, -1) @ blocks)[:, 0]
        return add_at(sums, jnp.where(term < total, row, len(sums)), products)

    return jax.lax.fori_loop(0, -(-total // of_step), add_step, sums)


def gemv_in_steps(
    o: Array, W: Array, h: Array, inputIdx: Array, outputIdx: Array, *, transposed: bool
) -> Array:
    """o[n, w] + sum_v h[n, v] @ W[inputIdx[n, v], outputIdx[n, w]]

    With `transposed` it is W[outputIdx[n, w], inputIdx[n, v]].T that is multiplied by, where it
    lies. A result that an index out of range takes part in is NaN.
    """
    iBlocks, oBlocks = W.shape[1::-1] if transposed else W.shape[:2]
    sizes = countable_sizes(inputIdx, outputIdx, (iBlocks, oBlocks))
    inputIdx, outputIdx = counted(inputIdx, iBlocks), counted(outputIdx, oBlocks)
    sums = fold(o)
    if sizes.triples and W.size:
        add = add_by_block if reuse_of(sizes) >= SORTED_REUSE else add_by_window
        sums = add(sums, W, h, inputIdx, outputIdx, sizes, transposed)
    wrong = (inputIdx == iBlocks).any(1, keepdims=True) | (outputIdx == oBlocks)
    return jnp.where(wrong[:, :, None], unknown(o), sums.reshape(o.shape)).astype(o.dtype)


def outer_in_steps(o: Array, x: Array, y: Array, xIdx: Array, yIdx: Array) -> Array:
    """o[xIdx[n, v], yIdx[n, w]] += outer(x[n, v], y[n, w]), without what is out of range."""
    sizes = countable_sizes(xIdx, yIdx, o.shape[:2])
    if not sizes.triples or not o.size:
        return o
    form = choose_form(sizes, *o.shape[2:])
    xIdx, yIdx = counted(xIdx, sizes.iBlocks), counted(yIdx, sizes.oBlocks)
    tiles = cut(jnp, xIdx, yIdx, sizes, form)
    left, right = rows(x), rows(y)

    def add_step(number: Array, o: Array) -> Array:
        step = rows_of_step(jnp, tiles, number)
        products = jnp.einsum("krp,krq->kpq", left[step.left], right[step.right])
        return add_at(o, (step.i, step.j), products)

    return jax.lax.fori_loop(0, tiles.steps, add_step, o)


def primitive(name: str, function: Callable, *parameters: str) -> Primitive:
    """A primitive of which the result is like its first argument."""
    made = Primitive(name)
    made.def_impl(jax.jit(function, static_argnames=parameters))
    made.def_abstract_eval(lambda o, *others, **parameters: o)
    mlir.register_lowering(made, mlir.lower_fun(function, multiple_results=False))
    return made


gemv_p = primitive("sparse_block_gemv", gemv_in_steps, "transposed")
outer_p = primitive("sparse_block_outer", outer_in_steps)


def gemv(
    o: Array, W: Array, h: Array, inputIdx: Array, outputIdx: Array, transposed: bool = False
) -> Array:
    return gemv_p.bind(o, W, h, inputIdx, outputIdx, transposed=transposed)


outer = outer_p.bind


def pushforward(
    op: Callable, arguments: Sequence[Array], tangents: Sequence[Any], **parameters: bool
) -> tuple[Array, Any]:
    """The op's result and its tangent: that of o, with a term for each factor that has one."""
    _, one, other, *indices = arguments
    to, t_one, t_other, *_ = tangents
    op = partial(op, **parameters)
    result = op(*arguments)
    if all(isinstance(t, ad.Zero) for t in (to, t_one, t_other)):
        return result, to
    tangent = ad.instantiate_zeros(to)
    if not isinstance(t_one, ad.Zero):
        tangent = op(tangent, t_one, other, *indices)
    if not isinstance(t_other, ad.Zero):
        tangent = op(tangent, one, t_other, *indices)
    return result, tangent


ad.primitive_jvps[gemv_p] = partial(pushforward, gemv)
ad.primitive_jvps[outer_p] = partial(pushforward, outer)


def pullback(cotangent: Any, o: Any, *factors: tuple[Any, Callable[[Array], Array]]) -> Gradients:
    """The gradient of o, and what a function of zeros adds to these for each factor."""

    def gradient(factor: Any, add: Callable[[Array], Array]) -> Array | None:
        if not ad.is_undefined_primal(factor) or isinstance(cotangent, ad.Zero):
            return None
        return add(jnp.zeros(factor.aval.shape, factor.aval.dtype))

    to_o = cotangent if ad.is_undefined_primal(o) else None
    return to_o, *(gradient(*factor) for factor in factors), None, None


def pullback_gemv(
    cotangent: Any, o: Any, W: Any, h: Any, inputIdx: Array, outputIdx: Array, *, transposed: bool
) -> Gradients:
    def to_W(zeros: Array) -> Array:
        if transposed:
            return outer(zeros, cotangent, h, outputIdx, inputIdx)
        return outer(zeros, h, cotangent, inputIdx, outputIdx)

    def to_h(zeros: Array) -> Array:
        return gemv(zeros, W, cotangent, outputIdx, inputIdx, not transposed)

    return pullback(cotangent, o, (W, to_W), (h, to_h))


def pullback_outer(cotangent: Any, o: Any, x: Any, y: Any, xIdx: Array, yIdx: Array) -> Gradients:
    def to_x(zeros: Array) -> Array:
        return gemv(zeros, cotangent, y, yIdx, xIdx, True)

    def to_y(zeros: Array) -> Array:
        return gemv(zeros, cotangent, x, xIdx, yIdx)

    return pullback(cotangent, o, (x, to_x), (y, to_y))


ad.primitive_transposes[gemv_p] = pullback_gemv
ad.primitive_transposes[outer_p] = pullback_outer


def map_gemv_p(arguments: Sequence[Array], axes: Axes, *, transposed: bool) -> tuple[Array, int]:
    call = partial(gemv, transposed=transposed)
    first_axis = "outputIdx" if transposed else "inputIdx"
    return map_gemv(jnp, counted, call, arguments, axes, first_axis), 0


def map_outer_p(arguments: Sequence[Array], axes: Axes) -> tuple[Array, int]:
    return map_outer(jnp, counted, outer, arguments, axes), 0


batching.primitive_batchers[gemv_p] = map_gemv_p
batching.primitive_batchers[outer_p] = map_outer_p
