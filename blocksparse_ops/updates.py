"""Optimizers, under PyMC's and Lasagne's names, whose steps touch the blocks in use alone.

A parameter that the loss uses by `sparse_block_dot` or `sparse_block_take` alone has its state
moved lazily: the values and the state of a block move when the block is in use, and of all others
every bit stays. Any other parameter is updated densely, as by ``pymc.variational.updates``.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial, wraps
from inspect import signature
from typing import Any, TypeAlias

import numpy as np
import pytensor
from pytensor.compile.sharedvalue import SharedVariable
from pytensor.tensor.basic import cast
from pytensor.tensor.math import sqr, sqrt
from pytensor.tensor.variable import TensorVariable

from blocksparse_ops.arguments import TensorLike
from blocksparse_ops.gradient import BlockGradient
from blocksparse_ops.grads import (
    Gradient,
    clip_by_global_norm,
    get_or_compute_dense_grads,
    get_or_compute_grads,
    number,
    times,
)

__all__ = [
    "adagrad",
    "adam",
    "adamw",
    "clip_by_global_norm",
    "get_or_compute_grads",
    "momentum",
    "nesterov_momentum",
    "rmsprop",
    "sgd",
]

Updates: TypeAlias = "OrderedDict[SharedVariable, TensorVariable]"

# From the values of a parameter, their gradient and states: the new values, and the new states.
Rule: TypeAlias = Callable[..., tuple[TensorVariable, list[TensorVariable]]]


def optimizer(
    function: Callable[..., Updates], gradients: Callable = get_or_compute_grads
) -> Callable[..., Any]:
    """An optimizer from a function of gradients; without arguments it is one yet to be called."""
    of = signature(function)

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        options = of.bind(*args, **kwargs).arguments
        loss_or_grads, params = options.pop("loss_or_grads", None), options.pop("params", None)
        if loss_or_grads is None and params is None:
            return partial(call, **options)
        if loss_or_grads is None or params is None:
            raise ValueError("Give both `loss_or_grads` and `params` to get updates, or neither")
        params = list(params)
        return function(gradients(loss_or_grads, params), params, **options)

    return call


def updates_by(
    rule: Rule, grads: Sequence[Gradient], params: Sequence[SharedVariable], *states: str
) -> Updates:
    """The updates by a rule, with a state of zeros of each parameter's shape for each name.

    All are of the parameter's dtype, in whatever precision the loss was computed.
    """
    updates: Updates = OrderedDict()
    for position, (param, gradient) in enumerate(zip(params, grads, strict=True)):
        kept = [zeros_of(param, f"{param.name or position}.{state}") for state in states]
        if isinstance(gradient, BlockGradient):
            of, put = gradient.of, gradient.put
            g = cast(gradient.values, param.dtype)
            values, new = rule(of(param), g, *map(of, kept))
            new = [put(state, values) for state, values in zip(kept, new, strict=True)]
            updates[param] = put(param, values)
        else:
            updates[param], new = rule(param, cast(gradient, param.dtype), *kept)
        updates.update(zip(kept, new, strict=True))
    return updates


def zeros_of(param: SharedVariable, name: str) -> SharedVariable:
    value = param.get_value(borrow=True)
    # As they come from the system: pages that are never in use are never touched.
    zeros = np.zeros(value.shape, value.dtype)
    return pytensor.shared(zeros, name=name, shape=param.type.shape, borrow=True)


@partial(optimizer, gradients=get_or_compute_dense_grads)
def sgd(loss_or_grads: Any = None, params: Any = None, learning_rate: TensorLike = 1e-3) -> Updates:
    """``param := param - learning_rate * gradient``

    Parameters
    ----------
    loss_or_grads : (), or list
        A loss, or what `get_or_compute_grads` returns. Without it and `params` the optimizer is
        returned, to be called with both.
    params : list of shared variables
        What is updated.
    learning_rate : ()
        The rate, a number or a variable.

    Returns
    -------
    OrderedDict
        The new value of each shared variable, for `pytensor.function`.

    Examples
    --------
    >>> import numpy as np
    >>> import pytensor
    >>> from blocksparse_ops import sparse_block_take
    >>> from blocksparse_ops.updates import sgd
    >>> table = pytensor.shared(np.zeros((1000, 1)))
    >>> loss = sparse_block_take(table, [7, 5, 7]).sum()
    >>> train = pytensor.function([], updates=sgd(loss, [table], learning_rate=0.1))
    >>> train()
    []
    >>> table.get_value()[4:8, 0]
    array([ 0. , -0.1,  0. , -0.2])
    """
    rate = number("learning_rate", learning_rate)
    return updates_by(lambda old, g: (old - times(rate, g), []), loss_or_grads, params)


@optimizer
def momentum(
    loss_or_grads: Any = None,
    params: Any = None,
    learning_rate: TensorLike = 1e-3,
    momentum: TensorLike = 0.9,
) -> Updates:
    """``velocity := momentum * velocity - learning_rate * gradient; param := param + velocity``

    Parameters
    ----------
    loss_or_grads, params, learning_rate
        As of `sgd`.
    momentum : ()
        How much of the velocity is kept.

    Returns
    -------
    OrderedDict
        As of `sgd`; the velocity of `W` is named ``W.momentum.velocity``.
    """
    rate, kept = number("learning_rate", learning_rate), number("momentum", momentum)

    def rule(old: TensorVariable, g: TensorVariable, velocity: TensorVariable) -> tuple:
        velocity = times(kept, velocity) - times(rate, g)
        return old + velocity, [velocity]

    return updates_by(rule, loss_or_grads, params, "momentum.velocity")


@optimizer
def nesterov_momentum(
    loss_or_grads: Any = None,
    params: Any = None,
    learning_rate: TensorLike = 1e-3,
    momentum: TensorLike = 0.9,
) -> Updates:
    """``param := param + momentum * velocity - learning_rate * gradient``

    with ``velocity := momentum * velocity - learning_rate * gradient`` before it.

    Parameters
    ----------
    loss_or_grads, params, learning_rate, momentum
        As of `momentum`.

    Returns
    -------
    OrderedDict
        As of `sgd`; the velocity of `W` is named ``W.nesterov_momentum.velocity``.
    """
    rate, kept = number("learning_rate", learning_rate), number("momentum", momentum)

    def rule(old: TensorVariable, g: TensorVariable, velocity: TensorVariable) -> tuple:
        step = times(rate, g)
        velocity = times(kept, velocity) - step
        return old + (times(kept, velocity) - step), [velocity]

    return updates_by(rule, loss_or_grads, params, "nesterov_momentum.velocity")


@optimizer
def adagrad(
    loss_or_grads: Any = None,
    params: Any = None,
    learning_rate: TensorLike = 1.0,
    epsilon: TensorLike = 1e-6,
) -> Updates:
    """``param := param - learning_rate * gradient / sqrt(squares + epsilon)``

    with ``squares := squares + gradient**2`` before it.

    Parameters
    ----------
    loss_or_grads, params, learning_rate
        As of `sgd`.
    epsilon : ()
        Against a division by zero.

    Returns
    -------
    OrderedDict
        As of `sgd`; the squares of `W` are named ``W.adagrad.squares``.

    Notes
    -----
    Duchi, Hazan and Singer, "Adaptive subgradient methods", JMLR 12 (2011).
    """
    rate, epsilon = number("learning_rate", learning_rate), number("epsilon", epsilon)

    def rule(old: TensorVariable, g: TensorVariable, squares: TensorVariable) -> tuple:
        squares = squares + sqr(g)
        return old - times(rate, g) / sqrt(squares + cast(epsilon, g.dtype)), [squares]

    return updates_by(rule, loss_or_grads, params, "adagrad.squares")


@optimizer
def rmsprop(
    loss_or_grads: Any = None,
    params: Any = None,
    learning_rate: TensorLike = 1.0,
    rho: TensorLike = 0.9,
    epsilon: TensorLike = 1e-6,
) -> Updates:
    """``param := param - learning_rate * gradient / sqrt(squares + epsilon)``

    with ``squares := rho * squares + (1 - rho) * gradient**2`` before it.

    Parameters
    ----------
    loss_or_grads, params, learning_rate, epsilon
        As of `adagrad`.
    rho : ()
        How much of the squares is kept.

    Returns
    -------
    OrderedDict
        As of `sgd`; the squares of `W` are named ``W.rmsprop.squares``.

    Notes
    -----
    Tieleman and Hinton, "Lecture 6.5: RMSProp", Coursera (2012).
    """
    rate, epsilon = number("learning_rate", learning_rate), number("epsilon", epsilon)
    kept = number("rho", rho)

    def rule(old: TensorVariable, g: TensorVariable, squares: TensorVariable) -> tuple:
        squares = times(kept, squares) + times(1 - kept, sqr(g))
        return old - times(rate, g) / sqrt(squares + cast(epsilon, g.dtype)), [squares]

    return updates_by(rule, loss_or_grads, params, "rmsprop.squares")


@optimizer
def adam(
    loss_or_grads: Any = None,
    params: Any = None,
    learning_rate: TensorLike = 0.001,
    beta1: TensorLike = 0.9,
    beta2: TensorLike = 0.999,
    epsilon: TensorLike = 1e-8,
) -> Updates:
    """``param := param - rate * mean / (sqrt(squares) + epsilon)``

    with ``mean := beta1 * mean + (1 - beta1) * gradient``, ``squares := beta2 * squares +
    (1 - beta2) * gradient**2`` and, in step number t, ``rate = learning_rate *
    sqrt(1 - beta2**t) / (1 - beta1**t)``.

    Parameters
    ----------
    loss_or_grads, params, learning_rate
        As of `sgd`.
    beta1, beta2 : ()
        How much of the mean, and of the squares, is kept.
    epsilon : ()
        Against a division by zero.

    Returns
    -------
    OrderedDict
        As of `sgd`; the state of `W` is named ``W.adam.mean`` and ``W.adam.squares``, and the
        number of steps ``adam.steps``.

    Notes
    -----
    Kingma and Ba, "Adam: a method for stochastic optimization" (2014); for block-sparse parameters
    ``torch.optim.SparseAdam``: the steps are counted for all blocks together, so that a block which
    is seldom in use takes larger steps than if its own were counted.
    """
    moments = Moments("adam", learning_rate, beta1, beta2, epsilon)
    return moments.updates(lambda old, change: old + change, loss_or_grads, params)


@optimizer
def adamw(
    loss_or_grads: Any = None,
    params: Any = None,
    learning_rate: TensorLike = 0.001,
    beta1: TensorLike = 0.9,
    beta2: TensorLike = 0.999,
    epsilon: TensorLike = 1e-8,
    weight_decay: TensorLike = 0.01,
) -> Updates:
    """``param := (1 - learning_rate * weight_decay) * param + change``, the change that of `adam`

    Parameters
    ----------
    loss_or_grads, params, learning_rate, beta1, beta2, epsilon
        As of `adam`.
    weight_decay : ()
        How fast values decay; of a block, in the steps in which it is in use.

    Returns
    -------
    OrderedDict
        As of `adam`, with ``adamw`` in the names.

    Notes
    -----
    Loshchilov and Hutter, "Decoupled weight decay regularization" (2017).
    """
    moments = Moments("adamw", learning_rate, beta1, beta2, epsilon)
    left = 1 - moments.rate * number("weight_decay", weight_decay)
    return moments.updates(lambda old, change: times(left, old) + change, loss_or_grads, params)


class Moments:
    """What `adam` and `adamw` share."""

    def __init__(
        self,
        name: str,
        learning_rate: TensorLike,
        beta1: TensorLike,
        beta2: TensorLike,
        epsilon: TensorLike,
    ):
        self.name, self.steps = name, pytensor.shared(np.int64(0), name=f"{name}.steps")
        self.rate, self.epsilon = number("learning_rate", learning_rate), number("epsilon", epsilon)
        self.beta1, self.beta2 = number("beta1", beta1), number("beta2", beta2)

    def updates(
        self,
        finish: Callable[[TensorVariable, TensorVariable], TensorVariable],
        grads: Sequence[Gradient],
        params: Sequence[SharedVariable],
    ) -> Updates:
        """The updates; a new value is made of the old one and Adam's change."""
        beta1, beta2, t = self.beta1, self.beta2, self.steps + 1
        rate = self.rate * sqrt(1 - beta2**t) / (1 - beta1**t)

        def rule(
            old: TensorVariable, g: TensorVariable, mean: TensorVariable, squares: TensorVariable
        ) -> tuple:
            mean = times(beta1, mean) + times(1 - beta1, g)
            squares = times(beta2, squares) + times(1 - beta2, sqr(g))
            change = -times(rate, mean) / (sqrt(squares) + cast(self.epsilon, g.dtype))
            return finish(old, change), [mean, squares]

        states = f"{self.name}.mean", f"{self.name}.squares"
        updates = updates_by(rule, grads, params, *states)
        updates[self.steps] = t
        return updates
