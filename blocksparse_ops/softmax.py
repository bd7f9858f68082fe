"""h_softmax, log_h_softmax: a softmax over many outputs in two levels, first of classes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytensor.tensor as pt
from pytensor.tensor.special import log_softmax
from pytensor.tensor.variable import TensorVariable

from blocksparse_ops.arguments import TensorLike, as_block_index, as_tensor, require_integers
from blocksparse_ops.dot import sparse_block_dot


def h_softmax(
    x: TensorLike,
    batch_size: int | TensorVariable,
    n_outputs: int,
    n_classes: int,
    n_outputs_per_class: int,
    W1: TensorLike,
    b1: TensorLike,
    W2: TensorLike,
    b2: TensorLike,
    target: TensorLike | None = None,
) -> TensorVariable:
    """``softmax(x @ W1 + b1)[class] * softmax(x @ W2[class] + b2[class])[output in the class]``

    Output k is number ``k % n_outputs_per_class`` of class ``k // n_outputs_per_class``.

    Parameters
    ----------
    x : (batch_size, features)
        Values of any real dtype, upcast with the weights.
    batch_size : int or scalar variable
        The number of examples.
    n_outputs, n_classes, n_outputs_per_class : int
        ``n_classes * n_outputs_per_class`` may be more than `n_outputs`: the last outputs are then
        none, but take part in the softmax of their class.
    W1, b1 : (features, n_classes), (n_classes,)
        The weights and the bias of the first level.
    W2, b2 : (n_classes, features, n_outputs_per_class), (n_classes, n_outputs_per_class)
        Those of the second level.
    target : (batch_size,) or (batch_size, 1), optional
        The output of each example whose probability is wanted.

    Returns
    -------
    (batch_size,), or, without a target, (batch_size, n_outputs)
        Probabilities: of the targets, at the cost of one class an example, or of all outputs.

    Raises
    ------
    TypeError
        For what is no tensor, or a `target` that holds no integers.
    ValueError
        If there are fewer places in the classes than outputs, or it is known that sizes disagree.
    AssertionError
        When the graph runs, for a number of classes that W1 and b1 have not or, without a target,
        W2 and b2, or of outputs in each that W2 and b2 have not. What PyTensor would broadcast is
        a ValueError.
    IndexError
        When the graph runs, for a target whose class is none of W2, as the outputIdx of a product.

    Notes
    -----
    It costs least with as many classes as outputs in each, the square root of `n_outputs`. The
    function is Theano's ``tensor.nnet.h_softmax``; the idea is Goodman's, Classes for Fast Maximum
    Entropy Training (2001). For a loss, the logarithms of `log_h_softmax` are exact where
    probabilities underflow.

    Examples
    --------
    >>> import numpy as np
    >>> from blocksparse_ops import h_softmax
    >>> x = np.ones((3, 2))  # three examples of two features; four classes of five outputs
    >>> W1, b1 = np.zeros((2, 4)), np.zeros(4)
    >>> W2, b2 = np.zeros((4, 2, 5)), np.zeros((4, 5))
    >>> h_softmax(x, 3, 20, 4, 5, W1, b1, W2, b2, [0, 7, 19]).eval()
    array([0.05, 0.05, 0.05])
    """
    arguments = x, batch_size, n_outputs, n_classes, n_outputs_per_class, W1, b1, W2, b2, target
    return pt.exp(_log_probabilities("h_softmax", *arguments))


def log_h_softmax(
    x: TensorLike,
    batch_size: int | TensorVariable,
    n_outputs: int,
    n_classes: int,
    n_outputs_per_class: int,
    W1: TensorLike,
    b1: TensorLike,
    W2: TensorLike,
    b2: TensorLike,
    target: TensorLike | None = None,
) -> TensorVariable:
    """``log(h_softmax(...))``, computed without the probabilities: finite where these underflow

    Parameters, shapes and errors are those of `h_softmax`.

    Examples
    --------
    >>> import numpy as np
    >>> from blocksparse_ops import log_h_softmax
    >>> x = np.full((1, 1), 1000.0)
    >>> W1, b1 = np.array([[1.0, -1.0]]), np.zeros(2)
    >>> W2, b2 = np.zeros((2, 1, 1)), np.zeros((2, 1))
    >>> log_h_softmax(x, 1, 2, 2, 1, W1, b1, W2, b2, [1]).eval()
    array([-2000.])
    """
    arguments = x, batch_size, n_outputs, n_classes, n_outputs_per_class, W1, b1, W2, b2, target
    return _log_probabilities("log_h_softmax", *arguments)


def _log_probabilities(
    name: str,
    x: TensorLike,
    batch_size: int | TensorVariable,
    n_outputs: int,
    n_classes: int,
    n_outputs_per_class: int,
    W1: TensorLike,
    b1: TensorLike,
    W2: TensorLike,
    b2: TensorLike,
    target: TensorLike | None,
) -> TensorVariable:
    if n_outputs > n_classes * n_outputs_per_class:
        raise ValueError(
            f"{name}: n_outputs = {n_outputs} is more than n_classes * n_outputs_per_class = "
            f"{n_classes} * {n_outputs_per_class}; each output needs a place in a class"
        )
    names = ("x", "W1", "b1", "W2", "b2")
    values = zip(names, (x, W1, b1, W2, b2), strict=True)
    rows, *weights = (as_tensor(name, argument, value) for argument, value in values)
    W_classes, b_classes, W_outputs, b_outputs = weights
    of_layers = (batch_size, None), (None, n_classes), (n_classes,)
    of_outputs = (n_classes, None, n_outputs_per_class), (n_classes, n_outputs_per_class)
    for argument, variable, shape in zip(
        names, (rows, *weights), (*of_layers, *of_outputs), strict=True
    ):
        _require_shape(name, argument, variable, shape)
    of_classes = log_softmax(rows @ W_classes + b_classes, axis=-1)
    if target is None:
        logits = pt.tensordot(rows, W_outputs, [[1], [1]]) + b_outputs
        together = of_classes[:, :, None] + log_softmax(logits, axis=-1)
        together = pt.specify_shape(together, (None, n_classes, n_outputs_per_class))
        return together.reshape((batch_size, n_classes * n_outputs_per_class))[:, :n_outputs]
    output = as_block_index(name, "target", target).flatten()
    require_integers(name, "target", output)
    output = pt.cast(output, "int64")  # of uint64 and a number PyTensor makes float64
    of_target = output // n_outputs_per_class
    block = of_target[:, None]
    logits = sparse_block_dot(
        W_outputs[None], rows[:, None, :], pt.zeros_like(block), b_outputs, block
    )[:, 0]
    # The place in the class is a difference: PyTensor's PyTorch has no remainder.
    return _at(of_classes, of_target, n_classes) + _at(
        log_softmax(logits, axis=-1), output - of_target * n_outputs_per_class, n_outputs_per_class
    )


def _require_shape(
    name: str, argument: str, variable: TensorVariable, shape: tuple[Any, ...]
) -> None:
    """Raise a ValueError where it is known that a variable has another shape."""
    known = variable.type.shape
    if len(known) != len(shape) or any(
        isinstance(size, int | np.integer) and one not in (None, size)
        for size, one in zip(shape, known, strict=True)
    ):
        shown = ", ".join("?" if size is None else str(size) for size in shape)
        raise ValueError(f"{name}: {argument} has the shape {known}; expected ({shown})")


def _at(values: TensorVariable, index: TensorVariable, columns: int) -> TensorVariable:
    """One value of each row: a sum without the others, since a gather may not check its index."""
    values = pt.specify_shape(values, (None, columns))  # one would stand for others
    counted = pt.switch(index < 0, index + columns, index)
    # Not by `eq`, for which PyTensor's PyTorch compares whole tensors.
    is_another = pt.neq(counted[:, None], pt.arange(columns))
    return pt.switch(is_another, pt.constant(0, dtype=values.dtype), values).sum(axis=-1)
