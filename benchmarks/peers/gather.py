"""Gather each example's blocks, then one matrix product: what one would write by hand.

The same lines do for NumPy, PyTensor, Torch and JAX. With the blocks of one output side by side,
the product of an example and an output is one of a vector and a matrix.
"""

# How many arrays of the size of all gathered blocks live at a time.
COPIES = {
    "forward": 1,
    "gradient_in_h": 1,
    "outer_in_place": 2,
    "outer_into_zeros": 2,
    "training_step": 3,
}


def forward(o, W, h, i, j):
    """o + sum_v h_v @ W[i_v, j_w]"""
    batch, outputs, size = o.shape
    blocks = W[i[:, None, :], j[:, :, None]].reshape((batch, outputs, -1, size))
    return o + (h.reshape((batch, 1, 1, -1)) @ blocks)[:, :, 0]


def gradient_in_h(o, W, y, i, j):
    """o + sum_w W[i_v, j_w] @ y_w"""
    blocks = W[i[:, :, None], j[:, None, :]]
    return o + (blocks @ y[:, None, :, :, None]).sum(2)[..., 0]


def products(x, y, alpha):
    """The outer product of each pair of rows, for a scatter to add."""
    return (alpha * x)[:, :, None, :, None] * y[:, None, :, None, :]


def pairs(i, j):
    """What a gather or a scatter of whole blocks is indexed with."""
    return i[:, :, None], j[:, None, :]
