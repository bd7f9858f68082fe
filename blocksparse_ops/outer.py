"""The block-sparse outer product: each example adds to the few blocks that it names."""

import numpy as np
import pytensor.tensor as pt
from pytensor import config
from pytensor.gradient import disconnected_type

from blocksparse_ops import reference
from blocksparse_ops.base import SparseBlockOp
from blocksparse_ops.gemv import sparse_block_gemv
from blocksparse_ops.signature import OUTER
from blocksparse_ops.zeros import zeros_like


class SparseBlockOuter(SparseBlockOp):
    """``o[xIdx[b, v], yIdx[b, w]] += alpha * outer(x[b, v], y[b, w])`` for all b, v and w

    Parameters
    ----------
    inplace : bool, optional
        Write the result into `o`. For rewrites: PyTensor refuses such an op in a user's graph.

    Notes
    -----
    A call takes

    ===================  ==================================  =======================================
    name                 shape                               meaning
    ===================  ==================================  =======================================
    ``o``                (iBlocks, oBlocks, iSize, oSize)    what is added to
    ``x``, ``y``         (batch, iWin, iSize),               the vectors whose outer products are
                         (batch, oWin, oSize)                added
    ``xIdx``, ``yIdx``   (batch, iWin), (batch, oWin)        to which blocks
    ``alpha``            ()                                  scale, 1 if left out
    ===================  ==================================  =======================================

    and returns a tensor of the shape of `o`. `o`, `x` and `y` are upcast together; `alpha` is
    cast to their dtype and never upcasts them. Indices are integers of any dtype; negative ones
    count from the end, repeated ones accumulate.

    It raises a TypeError for a wrong number of dimensions, for indices that are no integers, for
    an in-place `o` that would need a cast and for an `alpha` that would lose its fraction; a
    ValueError for sizes that disagree, when the graph is built or when it runs; and an
    IndexError, before anything is written, for an index out of range.

    The idea, the names and the argument order are Theano's ``tensor.nnet.blocksparse``.

    Examples
    --------
    >>> import numpy as np
    >>> from blocksparse_ops import sparse_block_outer
    >>> o = np.zeros((2, 3, 1, 1))  # six blocks of 1 x 1
    >>> x, y = np.full((1, 2, 1), 2.0), np.full((1, 1, 1), 3.0)
    >>> sparse_block_outer(o, x, y, [[0, 1]], [[2]], 0.5).eval()[:, :, 0, 0]
    array([[0., 0., 3.],
           [0., 0., 3.]])
    """

    signature = OUTER
    kernel = "Outer"

    def make_node(self, o, x, y, xIdx, yIdx, alpha=None):
        return super().make_node(o, x, y, xIdx, yIdx, np.int8(1) if alpha is None else alpha)

    def perform(self, node, inputs, output_storage):
        output_storage[0][0] = reference.outer(*inputs, inplace=self.inplace)

    def pullback(self, inputs, outputs, cotangents):
        o, x, y, xIdx, yIdx, alpha = inputs
        (g,) = cotangents
        indices = [disconnected_type(), disconnected_type()]
        if not self._require_differentiable(o):
            g_o, g_x, g_y, g_alpha = (v.zeros_like(dtype=config.floatX) for v in (o, x, y, alpha))
            return [g_o, g_x, g_y, *indices, g_alpha]
        unscaled_x = sparse_block_gemv(zeros_like(x), g.transpose(1, 0, 3, 2), y, yIdx, xIdx)
        unscaled_y = sparse_block_gemv(zeros_like(y), g, x, xIdx, yIdx)
        g_alpha = pt.sum(x * unscaled_x, dtype=alpha.dtype)
        return [self._passed_on(g), alpha * unscaled_x, alpha * unscaled_y, *indices, g_alpha]

    def pushforward(self, inputs, outputs, tangents):
        o, x, y, xIdx, yIdx, alpha = inputs
        to, tx, ty, _, _, talpha = tangents
        terms = [
            (tx, (tx, y, xIdx, yIdx, alpha)),
            (ty, (x, ty, xIdx, yIdx, alpha)),
            (talpha, (x, y, xIdx, yIdx, talpha)),
        ]
        return self._pushed_forward(o, to, terms)

    def flops(self, inputs, outputs):
        """Multiplications and additions of one call, from its shapes, for PyTensor's profiler."""
        _, (batch, xWin, xSize), (_, yWin, ySize), *_ = inputs
        return 2 * batch * xWin * yWin * xSize * ySize


sparse_block_outer = SparseBlockOuter()
sparse_block_outer_inplace = SparseBlockOuter(inplace=True)
