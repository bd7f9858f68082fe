"""The block-sparse product: each example multiplies the few blocks of W that it names."""

from math import prod

import pytensor.tensor as pt
from pytensor import config
from pytensor.gradient import disconnected_type
from pytensor.graph.replace import _vectorize_node
from pytensor.tensor.blockwise import vectorize_node_fallback
from pytensor.tensor.random.utils import compute_batch_shape

from blocksparse_ops import reference
from blocksparse_ops.base import SparseBlockOp
from blocksparse_ops.signature import GEMV
from blocksparse_ops.zeros import zeros_like


class SparseBlockGemv(SparseBlockOp):
    """``o[b, w] + sum_v h[b, v] @ W[inputIdx[b, v], outputIdx[b, w]]``

    Parameters
    ----------
    inplace : bool, optional
        Write the result into `o`. For rewrites: PyTensor refuses such an op in a user's graph.

    Notes
    -----
    A call takes

    =============================  ==================================  =============================
    name                           shape                               meaning
    =============================  ==================================  =============================
    ``o``                          (batch, oWin, oSize)                what is added to, usually the
                                                                       bias of the blocks in use
    ``W``                          (iBlocks, oBlocks, iSize, oSize)    the weights, all blocks
    ``h``                          (batch, iWin, iSize)                the input blocks in use
    ``inputIdx``, ``outputIdx``    (batch, iWin), (batch, oWin)        which blocks these are
    =============================  ==================================  =============================

    and returns a tensor of the shape of `o`. `o`, `W` and `h` are upcast together. Indices are
    integers of any dtype; negative ones count from the end, repeated ones accumulate.

    It raises a TypeError for a wrong number of dimensions, for indices that are no integers and
    for an in-place `o` that would need a cast; a ValueError for sizes that disagree, when the
    graph is built or when it runs; and an IndexError, before anything is written, for an index
    out of range.

    The idea, the names and the argument order are Theano's ``tensor.nnet.blocksparse``.

    Examples
    --------
    >>> import numpy as np
    >>> from blocksparse_ops import sparse_block_gemv
    >>> W = np.arange(2 * 3).reshape(2, 3, 1, 1)  # six blocks of 1 x 1
    >>> h = np.ones((1, 2, 1))  # one example uses two input blocks
    >>> o = np.zeros((1, 1, 1))  # and one output block
    >>> sparse_block_gemv(o, W, h, [[0, 1]], [[2]]).eval()
    array([[[7.]]])
    """

    signature = GEMV
    kernel = "Gemv"

    def make_node(self, o, W, h, inputIdx, outputIdx):
        return super().make_node(o, W, h, inputIdx, outputIdx)

    def perform(self, node, inputs, output_storage):
        output_storage[0][0] = reference.gemv(*inputs, inplace=self.inplace)

    def pullback(self, inputs, outputs, cotangents):
        o, W, h, inputIdx, outputIdx = inputs
        (g,) = cotangents
        indices = [disconnected_type(), disconnected_type()]
        if not self._require_differentiable(o):
            return [x.zeros_like(dtype=config.floatX) for x in (o, W, h)] + indices
        g_W = sparse_block_outer(zeros_like(W), h, g, inputIdx, outputIdx)
        g_h = sparse_block_gemv(zeros_like(h), W.transpose(1, 0, 3, 2), g, outputIdx, inputIdx)
        return [self._passed_on(g), g_W, g_h, *indices]

    def pushforward(self, inputs, outputs, tangents):
        o, W, h, inputIdx, outputIdx = inputs
        to, tW, th, *_ = tangents
        terms = [
            (tW, (tW, h, inputIdx, outputIdx)),
            (th, (W, th, inputIdx, outputIdx)),
        ]
        return self._pushed_forward(o, to, terms)

    def flops(self, inputs, outputs):
        """Multiplications and additions of one call, from its shapes, for PyTensor's profiler."""
        (batch, oWin, oSize), _, (_, iWin, iSize), _, _ = inputs
        return 2 * batch * iWin * oWin * iSize * oSize


@_vectorize_node.register(SparseBlockGemv)
def vectorize_sparse_block_gemv(op, node, o, W, h, inputIdx, outputIdx):
    """Fold new batch dimensions into the op's own, unless W has them too."""
    if W.type.ndim != 4:
        return vectorize_node_fallback(op, node, o, W, h, inputIdx, outputIdx)
    batched = [o, h, inputIdx, outputIdx]
    ndims = [len(GEMV.axes[name]) for name in ("o", "h", "inputIdx", "outputIdx")]
    new_dims = max(x.type.ndim - ndim for x, ndim in zip(batched, ndims, strict=True))
    shape = compute_batch_shape(batched, ndims_params=ndims)
    new_shape = tuple(shape[axis] for axis in range(new_dims))

    def fold(x, ndim):
        batch, *core = tuple(x.shape)[x.type.ndim - ndim :]
        x = pt.broadcast_to(x, (*new_shape, batch, *core))
        return x.reshape((prod(new_shape) * batch, *core), ndim=ndim)

    o, h, inputIdx, outputIdx = (fold(x, n) for x, n in zip(batched, ndims, strict=True))
    folded = sparse_block_gemv(o, W, h, inputIdx, outputIdx)
    out_shape = (*new_shape, *tuple(batched[0].shape)[-3:])
    return folded.reshape(out_shape, ndim=new_dims + 3).owner


sparse_block_gemv = SparseBlockGemv()
sparse_block_gemv_inplace = SparseBlockGemv(inplace=True)

# The two modules differentiate into each other; here both names of this one exist.
from blocksparse_ops.outer import sparse_block_outer  # noqa: E402
