"""The gradients of a loss, by blocks where they can be, and clipped: what optimizers begin with."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from typing import TypeAlias

import numpy as np
from pytensor.compile.sharedvalue import SharedVariable
from pytensor.gradient import grad
from pytensor.graph.basic import Variable
from pytensor.tensor.basic import as_tensor_variable, cast
from pytensor.tensor.math import maximum, sqr, sqrt
from pytensor.tensor.type import float_dtypes
from pytensor.tensor.variable import TensorVariable

from blocksparse_ops.arguments import TensorLike
from blocksparse_ops.block_gradient import gradient_of_uses, uses_in
from blocksparse_ops.gradient import AXES_OF_BLOCKS, BlockGradient, squared_norm

Gradient: TypeAlias = TensorVariable | BlockGradient


def get_or_compute_grads(
    loss_or_grads: TensorVariable | Sequence[Gradient], params: Sequence[SharedVariable]
) -> list[Gradient]:
    """The gradients of a loss in shared variables; a list of gradients as it is

    A gradient is a `BlockGradient` where the loss uses the variable in block-sparse products alone,
    and else what `pytensor.grad` returns.

    Raises
    ------
    ValueError
        If a parameter is no shared variable, or there are more gradients than parameters, or less.
    TypeError
        If a parameter does not hold real numbers, or the loss is neither a variable nor a list.

    Examples
    --------
    >>> import numpy as np
    >>> import pytensor
    >>> from blocksparse_ops import sparse_block_take
    >>> from blocksparse_ops.updates import get_or_compute_grads
    >>> table, scale = pytensor.shared(np.ones((1000, 3))), pytensor.shared(2.0)
    >>> loss = (scale * sparse_block_take(table, [7, 5, 7])).sum()
    >>> of_table, of_scale = get_or_compute_grads(loss, [table, scale])
    >>> of_table.outputBlock.eval()
    array([5, 7])
    >>> of_table.values.eval()[:, 0, 0]
    array([2., 4.])
    """
    require_shared(params)
    if isinstance(loss_or_grads, list | tuple):
        if len(loss_or_grads) != len(params):
            raise ValueError(f"{len(loss_or_grads)} gradients for {len(params)} params")
        return list(loss_or_grads)
    require_loss(loss_or_grads)
    uses = {param: block_sparse_uses(loss_or_grads, param) for param in params}
    products = [use.product for of_param in uses.values() for use in of_param]
    dense = [param for param in params if not uses[param]]
    of_all = iter(grad(loss_or_grads, [*products, *dense]))
    found = {
        param: gradient_of_uses(param, of_param, [next(of_all) for _ in of_param])
        for param, of_param in uses.items()
        if of_param
    }
    found.update(zip(dense, of_all, strict=True))
    return [found[param] for param in params]


def require_shared(params: Sequence[SharedVariable]) -> None:
    for param in params:
        if not isinstance(param, SharedVariable):
            raise ValueError(f"params: {param} is no shared variable, so it cannot be updated")
        dtype = getattr(param.type, "dtype", None)
        if dtype not in float_dtypes:
            raise TypeError(f"params: {param} has dtype {dtype}; expected one of real numbers")


def require_loss(loss: object) -> None:
    if not isinstance(loss, Variable):
        raise TypeError(f"loss_or_grads is {loss!r}; expected a scalar variable or a list of grads")


def get_or_compute_dense_grads(
    loss_or_grads: TensorVariable | Sequence[Gradient], params: Sequence[SharedVariable]
) -> list[Gradient]:
    """Gradients for a step that is linear in them: PyTensor's, which become outers in place."""
    if isinstance(loss_or_grads, list | tuple):
        return get_or_compute_grads(loss_or_grads, params)
    require_shared(params)
    require_loss(loss_or_grads)
    return grad(loss_or_grads, list(params))


def block_sparse_uses(loss: TensorVariable, param: SharedVariable) -> list:
    """The products in which a loss uses a parameter, if it uses it in nothing else."""
    if param.type.ndim not in AXES_OF_BLOCKS:
        return []
    try:
        return list(uses_in(loss, param))
    except ValueError:
        return []


def clip_by_global_norm(grads: Sequence[Gradient], max_norm: TensorLike) -> list[Gradient]:
    """``g * max_norm / max(norm, max_norm)`` for all gradients, with ``norm`` that of all together

    Parameters
    ----------
    grads : list
        Gradients, as `get_or_compute_grads` returns them.
    max_norm : ()
        The largest norm that is left as it is.

    Returns
    -------
    list
        Gradients, each of the kind that it was.

    Notes
    -----
    The norm is computed from the blocks in use. The name is that of Optax; in PyTorch it is
    ``clip_grad_norm_``.

    Examples
    --------
    >>> import numpy as np
    >>> import pytensor
    >>> from blocksparse_ops.updates import clip_by_global_norm, get_or_compute_grads, sgd
    >>> a = pytensor.shared(np.array([3.0, 4.0]))
    >>> grads = get_or_compute_grads((a**2).sum() / 2, [a])
    >>> step = pytensor.function([], updates=sgd(clip_by_global_norm(grads, 1), [a], 1.0))
    >>> step()
    []
    >>> a.get_value()
    array([2.4, 3.2])
    """
    norm = sqrt(sum(square_of(g) for g in grads))
    limit = number("max_norm", max_norm)
    scale = limit / maximum(norm, limit)
    return [scaled_gradient(scale, g) for g in grads]


def square_of(gradient: Gradient) -> TensorVariable:
    if isinstance(gradient, BlockGradient):
        return squared_norm(gradient.values)
    return sqr(gradient).sum()


def scaled_gradient(scale: TensorVariable, gradient: Gradient) -> Gradient:
    if isinstance(gradient, BlockGradient):
        return gradient._replace(values=times(scale, gradient.values))
    return times(scale, gradient)


def number(name: str, value: TensorLike) -> TensorVariable:
    """A hyperparameter, which is computed with in double precision."""
    # A number of Python's becomes one of floatX in PyTensor, which may be single precision.
    exact = np.float64(value) if isinstance(value, Real) else value
    try:
        return cast(as_tensor_variable(exact), "float64")
    except (NotImplementedError, TypeError) as error:
        raise TypeError(f"{name} is {value!r}; expected a real number, or a variable") from error


def times(scale: TensorVariable, x: TensorVariable) -> TensorVariable:
    """A product of the dtype of `x`."""
    return cast(scale, x.dtype) * x
