"""Both ops for JAX, as primitives, which differentiate into each other.

A loop that JAX differentiates by itself would keep all blocks that it gathered. The primitives are
linear in what is added to and in each factor, so the rules say which of the two each derivative is.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from blocksparse_ops.kernels.jax_constants import Constants
from blocksparse_ops.kernels.jax_steps import counted, gemv_in_steps, outer_in_steps
from blocksparse_ops.kernels.mapped import Axes, map_gemv, map_outer

# In each argument, None where none is asked for.
Gradients: TypeAlias = tuple[Array | None, ...]


def constants_of(values: Sequence[Any], left: Any, right: Any) -> Constants | None:
    """Those of a call that is traced, as its values are; a call that is not compiles nothing."""
    if isinstance(left, Tracer) or isinstance(right, Tracer):
        return None
    traced = any(isinstance(x, Tracer) for x in values)
    return Constants(np.asarray(left), np.asarray(right)) if traced else None


def primitive(name: str, function: Callable, *parameters: str) -> Primitive:
    """A primitive of which the result is like its first argument."""
    made = Primitive(name)
    compiled = jax.jit(function, static_argnames=parameters)
    # Constants are compared by identity: with them each call would be compiled anew.
    made.def_impl(lambda *arguments, constants, **others: compiled(*arguments, **others))
    made.def_abstract_eval(lambda o, *others, **parameters: o)
    mlir.register_lowering(made, mlir.lower_fun(function, multiple_results=False))
    return made


gemv_p = primitive("sparse_block_gemv", gemv_in_steps, "transposed", "padding")
outer_p = primitive("sparse_block_outer", outer_in_steps, "padding")


def gemv(
    o: Array,
    W: Array,
    h: Array,
    inputIdx: Array,
    outputIdx: Array,
    *,
    transposed: bool = False,
    padding: int | None = None,
    constants: Constants | None = None,
) -> Array:
    constants = constants or constants_of((o, W, h), inputIdx, outputIdx)
    parameters = {"transposed": transposed, "padding": padding, "constants": constants}
    return gemv_p.bind(o, W, h, inputIdx, outputIdx, **parameters)


def outer(
    o: Array,
    x: Array,
    y: Array,
    xIdx: Array,
    yIdx: Array,
    *,
    padding: int | None = None,
    constants: Constants | None = None,
) -> Array:
    constants = constants or constants_of((o, x, y), xIdx, yIdx)
    return outer_p.bind(o, x, y, xIdx, yIdx, padding=padding, constants=constants)


def pushforward(
    op: Callable, arguments: Sequence[Array], tangents: Sequence[Any], **parameters: Any
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
    cotangent: Any,
    o: Any,
    W: Any,
    h: Any,
    inputIdx: Array,
    outputIdx: Array,
    *,
    transposed: bool,
    padding: int | None,
    constants: Constants | None,
) -> Gradients:
    exchanged = constants and constants.exchanged()

    def to_W(zeros: Array) -> Array:
        if transposed:
            arguments, known = (zeros, cotangent, h, outputIdx, inputIdx), exchanged
        else:
            arguments, known = (zeros, h, cotangent, inputIdx, outputIdx), constants
        return outer(*arguments, padding=padding, constants=known)

    def to_h(zeros: Array) -> Array:
        arguments = zeros, W, cotangent, outputIdx, inputIdx
        return gemv(*arguments, transposed=not transposed, padding=padding, constants=exchanged)

    return pullback(cotangent, o, (W, to_W), (h, to_h))


def pullback_outer(
    cotangent: Any,
    o: Any,
    x: Any,
    y: Any,
    xIdx: Array,
    yIdx: Array,
    *,
    padding: int | None,
    constants: Constants | None,
) -> Gradients:
    exchanged = constants and constants.exchanged()

    def to_x(zeros: Array) -> Array:
        arguments = zeros, cotangent, y, yIdx, xIdx
        return gemv(*arguments, transposed=True, padding=padding, constants=exchanged)

    def to_y(zeros: Array) -> Array:
        arguments = zeros, cotangent, x, xIdx, yIdx
        return gemv(*arguments, padding=padding, constants=constants)

    return pullback(cotangent, o, (x, to_x), (y, to_y))


ad.primitive_transposes[gemv_p] = pullback_gemv
ad.primitive_transposes[outer_p] = pullback_outer


def map_gemv_p(
    arguments: Sequence[Array],
    axes: Axes,
    *,
    transposed: bool,
    padding: int | None,
    constants: Constants | None,
) -> tuple[Array, int]:
    call = partial(gemv, transposed=transposed)
    names = ("outputIdx", "inputIdx") if transposed else ("inputIdx", "outputIdx")
    return map_gemv(jnp, counted, call, arguments, axes, padding, names), 0


def map_outer_p(
    arguments: Sequence[Array], axes: Axes, *, padding: int | None, constants: Constants | None
) -> tuple[Array, int]:
    return map_outer(jnp, counted, outer, arguments, axes, padding), 0


batching.primitive_batchers[gemv_p] = map_gemv_p
batching.primitive_batchers[outer_p] = map_outer_p
