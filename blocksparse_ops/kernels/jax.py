"""Both ops for JAX, as primitives: loops over tiles, which differentiate into each other.

A loop that JAX differentiates by itself would keep all blocks that it gathered. The primitives are
linear in what is added to and in each factor, so the rules say which of the two each derivative is.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from blocksparse_ops.kernels.mapped import fold, map_gemv, map_outer
from blocksparse_ops.kernels.tiles import (
    SORTED_REUSE,
    Sizes,
    choose_form,
    count_from_start,
    cut,
    reuse_of,
    rows_of_step,
    unknown,
)

# The working set of a step over windows, in elements, unless one block is larger.
WINDOW_ELEMENTS = 1 << 17


def counted(index, blocks):
    return count_from_start(jnp, index, blocks, int)


def sizes_of(inputIdx, outputIdx, blocks):
    sizes = Sizes(*inputIdx.shape, outputIdx.shape[1], *blocks)
    if sizes.triples >= jnp.iinfo(jnp.arange(0).dtype).max // 2:
        raise OverflowError(
            f"a block-sparse product of {sizes.triples} triples of (example, input, output): too "
            "many for JAX to number; use a smaller batch, or switch jax_enable_x64 on"
        )
    return sizes


def rows(values):
    """The rows of all windows one after the other, and one of zeros: for what is out of range."""
    return jnp.pad(fold(values), ((0, 1), (0, 0)))


def add_at(values, places, terms):
    """values[places] += terms, with repeated places; what lies outside is left out."""
    places, terms = values.at[places], terms.astype(values.dtype)
    return (places.max if values.dtype == jnp.bool_ else places.add)(terms, mode="drop")


def gather(W, i, j, transposed):
    return W.at[(j, i) if transposed else (i, j)].get(mode="clip")


def add_by_block(sums, W, h, inputIdx, outputIdx, sizes, transposed):
    """Add the products to the rows of all outputs, tile by tile of one block each."""
    tiles = cut(jnp, inputIdx, outputIdx, sizes, choose_form(sizes, *W.shape[2:]))
    left = rows(h)
    product = "krq,kpq->krp" if transposed else "krp,kpq->krq"

    def add_step(number, sums):
        step = rows_of_step(jnp, tiles, number)
        blocks = gather(W, step.i, step.j, transposed)
        return add_at(sums, step.right, jnp.einsum(product, left[step.left], blocks))

    return jax.lax.fori_loop(0, tiles.steps, add_step, sums)


def parts_of(inputs, block):
    """Into how many equal parts to cut the blocks of one output for a step to hold a part."""
    parts = (n for n in range(1, inputs) if inputs % n == 0)
    return next((n for n in parts if inputs // n * block <= WINDOW_ELEMENTS), inputs)


def add_by_window(sums, W, h, inputIdx, outputIdx, sizes, transposed):
    """Add the products to the rows of all outputs, a few outputs with their whole windows a step.

    Where blocks are read once or twice, sorting them does not pay; the blocks of one output are a
    matrix by which all its inputs, taken as one row, are multiplied.
    """
    block = W.shape[2] * W.shape[3]
    parts = parts_of(sizes.inputs, block)
    x = h.reshape(sizes.batch * parts, sizes.inputs // parts, -1)
    i, j = inputIdx.reshape(x.shape[:2]), outputIdx.reshape(-1, 1)
    total = sizes.batch * parts * sizes.outputs
    held = min(max(WINDOW_ELEMENTS // (x.shape[1] * block), 1), total)

    def add_step(number, sums):
        term = number * held + jnp.arange(held)
        part, output = jnp.divmod(jnp.minimum(term, total - 1), sizes.outputs)
        place = part // parts * sizes.outputs + output
        blocks = gather(W, i[part], j[place], transposed)
        if transposed:
            products = jnp.einsum("kvq,kvpq->kvp", x[part], blocks).sum(1)
        else:
            # Row by row of all blocks at once, so that their cache misses overlap.
            blocks = blocks.swapaxes(1, 2).reshape(held, -1, blocks.shape[-1])
            products = (x[part].mT.reshape(held, 1, -1) @ blocks)[:, 0]
        return add_at(sums, jnp.where(term < total, place, len(sums)), products)

    return jax.lax.fori_loop(0, -(-total // held), add_step, sums)


def gemv_in_steps(o, W, h, inputIdx, outputIdx, *, transposed):
    """o[n, w] + sum_v h[n, v] @ W[inputIdx[n, v], outputIdx[n, w]]

    With `transposed` it is W[outputIdx[n, w], inputIdx[n, v]].T that is multiplied by, where it
    lies. A result that an index out of range takes part in is NaN.
    """
    iBlocks, oBlocks = W.shape[1::-1] if transposed else W.shape[:2]
    sizes = sizes_of(inputIdx, outputIdx, (iBlocks, oBlocks))
    inputIdx, outputIdx = counted(inputIdx, iBlocks), counted(outputIdx, oBlocks)
    sums = fold(o)
    if sizes.triples and W.size:
        add = add_by_block if reuse_of(sizes) >= SORTED_REUSE else add_by_window
        sums = add(sums, W, h, inputIdx, outputIdx, sizes, transposed)
    wrong = (inputIdx == iBlocks).any(1, keepdims=True) | (outputIdx == oBlocks)
    return jnp.where(wrong[:, :, None], unknown(o), sums.reshape(o.shape)).astype(o.dtype)


def outer_in_steps(o, x, y, xIdx, yIdx):
    """o[xIdx[n, v], yIdx[n, w]] += outer(x[n, v], y[n, w]), without what is out of range."""
    sizes = sizes_of(xIdx, yIdx, o.shape[:2])
    if not sizes.triples or not o.size:
        return o
    form = choose_form(sizes, *o.shape[2:])
    xIdx, yIdx = counted(xIdx, sizes.iBlocks), counted(yIdx, sizes.oBlocks)
    tiles = cut(jnp, xIdx, yIdx, sizes, form)
    left, right = rows(x), rows(y)

    def add_step(number, o):
        step = rows_of_step(jnp, tiles, number)
        products = jnp.einsum("krp,krq->kpq", left[step.left], right[step.right])
        return add_at(o, (step.i, step.j), products)

    return jax.lax.fori_loop(0, tiles.steps, add_step, o)


def primitive(name, function, **parameters):
    """A primitive of which the result is like its first argument."""
    made = Primitive(name)
    made.def_impl(jax.jit(function, static_argnames=list(parameters)))
    made.def_abstract_eval(lambda o, *others, **parameters: o)
    mlir.register_lowering(made, mlir.lower_fun(function, multiple_results=False))
    return made


gemv_p = primitive("sparse_block_gemv", gemv_in_steps, transposed=bool)
outer_p = primitive("sparse_block_outer", outer_in_steps)


def gemv(o, W, h, inputIdx, outputIdx, transposed=False):
    return gemv_p.bind(o, W, h, inputIdx, outputIdx, transposed=transposed)


outer = outer_p.bind


def pushforward(op, arguments, tangents, **parameters):
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


def zeros_of(undefined):
    return jnp.zeros(undefined.aval.shape, undefined.aval.dtype)


def pull_back_gemv(cotangent, o, W, h, inputIdx, outputIdx, *, transposed):
    to_o = cotangent if ad.is_undefined_primal(o) else None
    to_W = to_h = None
    if not isinstance(cotangent, ad.Zero):
        if ad.is_undefined_primal(W):
            if transposed:
                to_W = outer(zeros_of(W), cotangent, h, outputIdx, inputIdx)
            else:
                to_W = outer(zeros_of(W), h, cotangent, inputIdx, outputIdx)
        if ad.is_undefined_primal(h):
            to_h = gemv(zeros_of(h), W, cotangent, outputIdx, inputIdx, not transposed)
    return to_o, to_W, to_h, None, None


def pull_back_outer(cotangent, o, x, y, xIdx, yIdx):
    to_o = cotangent if ad.is_undefined_primal(o) else None
    to_x = to_y = None
    if not isinstance(cotangent, ad.Zero):
        if ad.is_undefined_primal(x):
            to_x = gemv(zeros_of(x), cotangent, y, yIdx, xIdx, True)
        if ad.is_undefined_primal(y):
            to_y = gemv(zeros_of(y), cotangent, x, xIdx, yIdx)
    return to_o, to_x, to_y, None, None


ad.primitive_transposes[gemv_p] = pull_back_gemv
ad.primitive_transposes[outer_p] = pull_back_outer


def map_gemv_p(arguments, axes, *, transposed):
    call = partial(gemv, transposed=transposed)
    first_axis = "outputIdx" if transposed else "inputIdx"
    return map_gemv(jnp, counted, call, arguments, axes, first_axis), 0


def map_outer_p(arguments, axes):
    return map_outer(jnp, counted, outer, arguments, axes), 0


batching.primitive_batchers[gemv_p] = map_gemv_p
batching.primitive_batchers[outer_p] = map_outer_p
