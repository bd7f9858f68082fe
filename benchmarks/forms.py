"""A product with one output block an example: ours, and what one writes by hand for it.

By hand the weights are an array B of (groups, iSize, oSize). With one input block an example, `h`
is a matrix and the index a vector. Where a block has one row or one column, B and `h` have an axis
less.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytensor.tensor as pt

from blocksparse_ops import sparse_block_dot


class Form(NamedTuple):
    """How a product is written, with one input block an example and with several.

    Attributes
    ----------
    one, window : callable
        Functions of B, `h` and the index.
    inputs, outputs : int or None
        The only iSize and oSize that it is for; B and `h` then lack that axis.
    """

    one: Callable
    window: Callable
    inputs: int | None = None
    outputs: int | None = None

    def suits(self, iSize, oSize):
        return self.inputs in (None, iSize) and self.outputs in (None, oSize)

    def compute(self, window, *arguments):
        return (self.one if window == 1 else self.window)(*arguments)

    def arguments(self, W, h, index):
        """What the function takes, as views."""
        B = W[:, 0]
        if index.shape[1] == 1:
            h, index = h[:, 0], index[:, 0]
        if self.outputs == 1:
            B = B[..., 0]
        if self.inputs == 1:
            B, h = B[:, 0], h[..., 0]
        return B, h, index


class Ours(NamedTuple):
    """The package's product."""

    examples: int

    def suits(self, iSize, oSize):
        return True

    def compute(self, window, W, h, index):
        return sparse_block_dot(W, h, index, None, np.zeros((self.examples, 1), "int64"))

    def arguments(self, W, h, index):
        return W, h, index


class Recognised(NamedTuple):
    """A form by hand, as it is compiled where the package is imported."""

    form: Form

    def compute(self, *arguments):
        return self.form.compute(*arguments)

    def arguments(self, *arrays):
        return self.form.arguments(*arrays)


BY_HAND = {
    "product": Form(
        lambda B, h, i: (h[:, :, None] * B[i]).sum(1),
        lambda B, h, i: (h[:, :, :, None] * B[i]).sum((1, 2)),
    ),
    "matmul": Form(
        lambda B, h, i: (h[:, None, :] @ B[i])[:, 0],
        lambda B, h, i: (h[:, :, None, :] @ B[i]).sum(1)[:, 0],
    ),
    "einsum": Form(
        lambda B, h, i: pt.einsum("np,npq->nq", h, B[i]),
        lambda B, h, i: pt.einsum("nvp,nvpq->nvq", h, B[i]).sum(1),
    ),
    "rows": Form(
        lambda B, h, i: (h * B[i]).sum(1),
        lambda B, h, i: (h * B[i]).sum((1, 2)),
        outputs=1,
    ),
    "scaled rows": Form(
        lambda B, h, i: h[:, None] * B[i],
        lambda B, h, i: (h[:, :, None] * B[i]).sum(1),
        inputs=1,
    ),
    "numbers": Form(
        lambda B, h, i: h * B[i],
        lambda B, h, i: (h * B[i]).sum(1),
        inputs=1,
        outputs=1,
    ),
}
